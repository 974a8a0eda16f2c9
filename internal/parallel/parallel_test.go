package parallel_test

import (
	"sync/atomic"
	"testing"

	"omiappreg.org/keyrotation/internal/parallel"
)

func TestEachOnce(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 7, 8, 9, 1000} {
		for _, share := range []int{1, 8} {
			calls := make([]atomic.Int32, n)
			parallel.Each(n, share, func(i int) { calls[i].Add(1) })
			for i := range calls {
				if got := calls[i].Load(); got != 1 {
					t.Fatalf("n %d, share %d: call %d ran %d times", n, share, i, got)
				}
			}
		}
	}
}

func TestPanicIsTheCallers(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 100} {
		func() {
			defer func() {
				if v := recover(); v != "poison" {
					t.Errorf("n %d: recovered %v", n, v)
				}
			}()
			parallel.Each(n, 1, func(i int) {
				if i == n-1 {
					panic("poison")
				}
			})
		}()
	}
}
