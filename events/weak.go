package events

import (
	"crypto/rand"

	"github.com/oasisprotocol/curve25519-voi/curve"
)

const (
	// weakSums is the number of random sums that stand for many points. A point of mixed order
	// escapes all of them with a probability of 2⁻¹⁶. A key that escapes harms only its owner: most
	// of its signatures don't verify.
	weakSums = 16
	// weakWorthwhile is the number of points from which on sums are faster than one multiplication
	// for each point.
	weakWorthwhile = 20
	// weakTogether is the number of points that share a table of all their sums. With 16 sums, 3
	// points cost the fewest additions: 6 for each point.
	weakTogether = 3
)

// WeakKeys returns the keys that must not be registered, by the rule of [PublicKey.CheckStrength].
//
// To find a key of mixed order costs a multiplication, two thirds of the cost of a verification. So
// for many keys WeakKeys checks random sums: a sum has a component of small order if one of its
// points has one, unless two cancel, and a random bit decides whether a point is in the sum. If a
// sum has such a component, each key is checked alone.
func WeakKeys(keys []PublicKey) map[PublicKey]bool {
	weak := map[PublicKey]bool{}
	points := make([]curve.EdwardsPoint, 0, len(keys))
	known := make([]PublicKey, 0, len(keys))
	for _, k := range keys {
		p, err := k.point()
		if err != nil {
			weak[k] = true
			continue
		}
		points, known = append(points, p), append(known, k)
	}
	if len(points) >= weakWorthwhile && noneMixed(points) {
		return weak
	}
	for i := range points {
		if !points[i].IsTorsionFree() {
			weak[known[i]] = true
		}
	}
	return weak
}

// noneMixed reports whether no sum has a component of small order.
func noneMixed(points []curve.EdwardsPoint) bool {
	var sums [weakSums]curve.EdwardsPoint
	for i := range sums {
		sums[i].Identity()
	}
	tables := (len(points) + weakTogether - 1) / weakTogether
	random := make([]byte, tables*weakSums)
	_, _ = rand.Read(random)                        // never fails
	var table [1 << weakTogether]curve.EdwardsPoint // sums, by which of the points they include
	table[0].Identity()
	for n := range tables {
		own := points[n*weakTogether : min((n+1)*weakTogether, len(points))]
		for i := range own {
			for rest := range 1 << i {
				table[rest|1<<i].Add(&table[rest], &own[i])
			}
		}
		for i := range sums {
			if in := random[n*weakSums+i] & (1<<len(own) - 1); in != 0 {
				sums[i].Add(&sums[i], &table[in])
			}
		}
	}
	for i := range sums {
		if !sums[i].IsTorsionFree() {
			return false
		}
	}
	return true
}
