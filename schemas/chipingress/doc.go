// Package chipingress is the ChipIngress protocol: generated messages, server and
// client. Results answer events by position; chip_ingress.proto says the rest.
//
// The generated types register under the names of the protocol. A program that links
// another package generated from the same protocol cannot link this one too.
package chipingress
