package bench

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// planNode is a node of what EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) says.
type planNode struct {
	Type     string     `json:"Node Type"`
	Relation string     `json:"Relation Name"`
	Index    string     `json:"Index Name"`
	Subplan  string     `json:"Subplan Name"`
	CTE      string     `json:"CTE Name"`
	Hit      int64      `json:"Shared Hit Blocks"`
	Read     int64      `json:"Shared Read Blocks"`
	Plans    []planNode `json:"Plans"`
}

// explained is one execution of a statement.
type explained struct {
	Plan planNode `json:"Plan"`
	// Milliseconds, triggers and constraints included.
	Took float64 `json:"Execution Time"`
}

func parseExplained(text []byte) (explained, error) {
	var found []explained
	if err := json.Unmarshal(text, &found); err != nil || len(found) != 1 {
		return explained{}, fmt.Errorf("read a plan: %d statements, %w", len(found), err)
	}
	return found[0], nil
}

func (n *planNode) walk(visit func(*planNode)) {
	visit(n)
	for i := range n.Plans {
		n.Plans[i].walk(visit)
	}
}

// buffers is how many shared buffers an execution touched. A node has those of what it pulled rows
// from, so the topmost has all but those of the writing parts that nobody reads from: they run
// when the rest is done.
func (e *explained) buffers() int64 {
	scanned := map[string]bool{}
	e.Plan.walk(func(n *planNode) {
		if n.CTE != "" {
			scanned["CTE "+n.CTE] = true
		}
	})
	sum := e.Plan.Hit + e.Plan.Read
	e.Plan.walk(func(n *planNode) {
		if strings.HasPrefix(n.Subplan, "CTE ") && !scanned[n.Subplan] {
			sum += n.Hit + n.Read
		}
	})
	return sum
}

// kind names the ways in which a plan looks at tables, each once.
func (e *explained) kind() string {
	var ways []string
	e.Plan.walk(func(n *planNode) {
		if !strings.Contains(n.Type, "Scan") || n.Relation == "" && n.Index == "" {
			return
		}
		way := n.Type + " " + n.Relation
		if n.Index != "" {
			way = n.Type + " " + n.Index
		}
		if !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	})
	if len(ways) == 0 {
		return "no table is searched"
	}
	return strings.Join(ways, ", ")
}
