package verify

import (
	"bytes"
	"encoding/binary"
	"slices"

	"omiappreg.org/keyrotation/events"
)

// shard holds the services whose names share a part of their hash. All their state is in one piece
// of memory without pointers, because the garbage collector would have to follow pointers. The
// parts that a search reads first lie next to each other:
//
//	marks     another byte of each service's hash
//	ends      where each service's entry ends
//	apps      the names of their apps, each of them once
//	entries   of each service: its name, where its app's name is, its record
//
// A shard that readers have is immutable: a change makes another one.
type shard struct {
	block    []byte
	services uint32 // their number
	apps     uint32 // in bytes
}

const endSize = 4 // in bytes

func (s *shard) marks() []byte { return s.block[:s.services] }
func (s *shard) ends() []byte  { return s.block[s.services:][:endSize*s.services] }
func (s *shard) texts() []byte { return s.block[(1+endSize)*s.services:][:s.apps] }

func (s *shard) entries() []byte { return s.block[(1+endSize)*s.services+s.apps:] }

// bounds returns where entry i begins and ends.
func (s *shard) bounds(i int) (from, to uint32) {
	ends := s.ends()
	if i > 0 {
		from = binary.LittleEndian.Uint32(ends[endSize*(i-1):])
	}
	return from, binary.LittleEndian.Uint32(ends[endSize*i:])
}

// find returns the index of a service and its record; the index is -1 if the service isn't there.
func (s *shard) find(mark byte, target events.Target) (int, record) {
	if s == nil {
		return -1, nil
	}
	marks := s.marks()
	for i := bytes.IndexByte(marks, mark); i >= 0; {
		if r := s.named(i, target); r != nil {
			return i, r
		}
		next := bytes.IndexByte(marks[i+1:], mark)
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return -1, nil
}

// named returns the record of entry i, if it belongs to this service.
func (s *shard) named(i int, target events.Target) record {
	from, to := s.bounds(i)
	entry := s.entries()[from:to]
	nameEnd := 1 + int(entry[0])
	service, rest := entry[1:nameEnd], record(entry[nameEnd:])
	if string(service) != target.Service.String() {
		return nil
	}
	app := s.texts()[rest.count():]
	if string(app[1:1+int(app[0])]) != target.App.String() {
		return nil
	}
	return rest
}

// app returns the place of an app's name. If the name isn't there yet, its place is at the end.
func (s *shard) app(id events.AppID) (place int, found bool) {
	texts := s.texts()
	for place < len(texts) {
		from := place + 1
		if place = from + int(texts[place]); string(texts[from:place]) == id.String() {
			return from - 1, true
		}
	}
	return place, false
}

// add returns the shard with one more service. grow makes its memory from the present one; it uses
// the same memory if no reader has it.
func (s *shard) add(mark byte, target events.Target, r record, grow func(have []byte, more int) []byte) shard {
	place, found := s.app(target.App)
	var app []byte
	if !found {
		app = appendText(make([]byte, 0, 1+len(target.App.String())), target.App.String())
	}
	var room [80]byte // a service's name has at most 63 bytes
	name := binary.AppendUvarint(appendText(room[:0], target.Service.String()), uint64(place))
	next := shard{services: s.services + 1, apps: s.apps + uint32(len(app))}
	next.block = grow(s.block, 1+endSize+len(app)+len(name)+len(r))
	// From the back to the front, so that nothing is overwritten before it is moved.
	entries := next.entries()
	n := copy(entries, s.entries())
	copy(entries[n+copy(entries[n:], name):], r)
	copy(next.texts()[copy(next.texts(), s.texts()):], app)
	ends := next.ends()
	binary.LittleEndian.PutUint32(ends[copy(ends, s.ends()):], uint32(len(entries)))
	next.marks()[copy(next.marks(), s.marks())] = mark
	return next
}

// with returns the shard with service i's record changed from have to next.
func (s *shard) with(i int, have, next record) *shard {
	_, end := s.bounds(i)
	to := len(s.block) - len(s.entries()) + int(end)
	out := &shard{slices.Concat(s.block[:to-len(have)], next, s.block[to:]), s.services, s.apps}
	// if it is less, the sums wrap around to the right values
	if more := uint32(len(next)) - uint32(len(have)); more != 0 {
		ends := out.ends()
		for ; i < int(s.services); i++ {
			binary.LittleEndian.PutUint32(ends[endSize*i:], binary.LittleEndian.Uint32(ends[endSize*i:])+more)
		}
	}
	return out
}

// appendText appends a text of at most 255 bytes.
func appendText(b []byte, text string) []byte { return append(append(b, byte(len(text))), text...) }
