// Command clock prints what time it is and how long 10 ms take.
package main

import (
	"fmt"
	"time"
)

func main() {
	began := time.Now()
	time.Sleep(10 * time.Millisecond)
	fmt.Println(began.UTC().Format(time.RFC3339), time.Since(began))
}
