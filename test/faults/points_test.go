package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sourcePoints finds the fail points in the source, by name: whether their answer can be lost.
func sourcePoints(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	files := token.NewFileSet()
	for _, root := range []string{"../../pipeline", "../../sinks", "../../internal", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				f, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if of, ok := f.X.(*ast.Ident); !ok || of.Name != "failpoint" {
					return true
				}
				literal, ok := call.Args[0].(*ast.BasicLit)
				if !ok {
					t.Errorf("%s: the name of a fail point is not a literal", files.Position(call.Pos()))
					return true
				}
				name, err := strconv.Unquote(literal.Value)
				if _, twice := found[name]; err != nil || twice {
					t.Errorf("%s: there are two points %s", files.Position(call.Pos()), name)
				}
				found[name] = f.Sel.Name == "Err"
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func TestTableHasThePointsOfTheSource(t *testing.T) {
	found := sourcePoints(t)
	for _, p := range failPoints() {
		loses, ok := found[p.name]
		if !ok {
			t.Errorf("%s is in the table, or twice, and not in the source", p.name)
		} else if loses != p.loses {
			t.Errorf("%s: its answer can be lost: the table says %v, the source %v", p.name, p.loses, loses)
		}
		delete(found, p.name)
	}
	for name := range found {
		t.Errorf("%s is in the source and not in the table", name)
	}
}

// What is for tests only must not be in what is shipped.
func TestPlainBuildHasNoTraceOfThePoints(t *testing.T) {
	for _, test := range []struct {
		tags string
		want bool
	}{{"", false}, {"failpoints", true}} {
		binary := filepath.Join(t.TempDir(), "waybill")
		cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-tags="+test.tags, "-o", binary, "github.com/waybillhq/waybill/cmd/waybill")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build waybill: %v\n%s", err, out)
		}
		data, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		traces := []string{"pipeline/failpoint", "WAYBILL_FAILPOINTS"}
		for _, p := range failPoints() {
			traces = append(traces, p.name)
		}
		for _, trace := range slices.Compact(traces) {
			if bytes.Contains(data, []byte(trace)) != test.want {
				t.Errorf("with the tags %q: that the binary has %q is %v", test.tags, trace, !test.want)
			}
		}
	}
}
