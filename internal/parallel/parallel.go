// Package parallel spreads work that needs only the processor over all cores.
package parallel

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Each calls do(0) … do(n-1), in any order, and returns when all calls are done. It uses as many
// cores as there are shares of at least `share` calls. A single share runs on the caller's
// goroutine. A panic of a call becomes a panic of the caller: on a goroutine of its own it would
// end the process.
func Each(n, share int, do func(i int)) {
	workers := min((n+share-1)/share, runtime.GOMAXPROCS(0))
	if workers <= 1 {
		for i := range n {
			do(i)
		}
		return
	}
	var next atomic.Int64
	var running sync.WaitGroup
	panics := make(chan any, workers)
	for range workers {
		running.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					panics <- v
				}
			}()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	running.Wait()
	select {
	case v := <-panics:
		panic(v)
	default:
	}
}
