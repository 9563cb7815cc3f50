package roundtrip

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// WriteTable writes a line per sink, and the examples of what is not as it should be.
func WriteTable(w io.Writer, reports []Report) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if _, err := fmt.Fprintln(table, "sink\taccepted\tdelivered\tmissing\tdouble\tout of order\twrong\tgaps\t"); err != nil {
		return err
	}
	for _, r := range reports {
		if _, err := fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", r.Sink, r.Accepted, r.Delivered,
			r.Missing, r.Double, r.OutOfOrder, r.Wrong, r.Gaps); err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range reports {
		for _, example := range r.Examples {
			if _, err := fmt.Fprintln(w, "  "+example); err != nil {
				return err
			}
		}
	}
	return nil
}
