// Package postgres holds the migrations of Waybill's tables, embedded. They go forward
// only: a mistake is mended by a further migration.
package postgres

import "embed"

// Migrations are numbered SQL files in goose's format.
//
//go:embed *.sql
var Migrations embed.FS
