package sqldb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
)

// After a crash, SQLite replays the log that it finds next to a database, whatever database it was
// written for. Where a person has copied a backup over the file, and left the log there, the result
// is a mix of both, which looks sound at first, or even to PRAGMA quick_check.
//
// So each commit stamps the database: a random number in the header of its first page (as SQLite's
// application_id), and that of the commit before (as its user_version). The first page is then in
// the log once a commit. A log belongs to a file if the file's stamp is the one that the log's
// first commit followed, or that of a commit in the log: a checkpoint had brought the file there.
//
// A copy has the stamp of its database. VACUUM INTO, however, puts the rows on other pages, and the
// log is about pages. It makes the copy's schema cookie, another number of the header, one larger
// than the database's. In a database and its log it only grows: a file with a larger one than the
// log's commit of that stamp is such a copy. (SQLite's .backup copies page by page, and makes it
// small.)
//
// Commits of other programs have no stamp, and neither have those of the migrations. Where that
// leaves it open, PRAGMA quick_check is the second-best answer.

// stampAfter returns what gives a commit its stamp, after a commit with the stamp before.
func stampAfter(before int64) string {
	next := rand.Int32() | 1 //nolint:gosec // no secret; 0 means that there was none yet
	return "PRAGMA user_version = " + strconv.FormatInt(before, 10) + "; PRAGMA application_id = " + strconv.Itoa(int(next))
}

// belonging says whether the log next to a database is its own.
type belonging int

const (
	noLog      belonging = iota // there is none, or nothing is in it
	otherLog                    // it is another file's
	unclearLog                  // the stamps don't tell
	ownLog                      // it is
)

// Where the header of a database, which is the beginning of its first page, has the stamps.
const (
	headerBytes = 100
	schemaAt    = 40
	beforeAt    = 60
	stampAt     = 68
)

// stamps are those of a first page.
type stamps struct{ before, now, schema uint32 }

func stampsOf(header []byte) stamps {
	number := func(at int) uint32 { return binary.BigEndian.Uint32(header[at:]) }
	return stamps{number(beforeAt), number(stampAt), number(schemaAt)}
}

// logOf says whether the log next to a database is its own. The database must not be in use: it and
// its log change then.
func logOf(file string) (belonging, error) {
	file = realPath(file)
	log, err := os.Open(file + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return noLog, nil
	}
	if err != nil {
		return noLog, err
	}
	defer func() { _ = log.Close() }() // it was read
	header, err := headerOf(file)
	if err != nil || len(header) < headerBytes || !bytes.HasPrefix(header, []byte("SQLite format 3\x00")) {
		return noLog, err // SQLite drops the log of an empty file, and refuses what is no database
	}
	frames, ok := readFrames(log)
	if !ok {
		return noLog, nil
	}
	return compareStamps(stampsOf(header), frames), nil
}

func headerOf(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was read
	return io.ReadAll(io.LimitReader(f, headerBytes))
}

// compareStamps compares the stamps of a file with those of the log's commits.
func compareStamps(file stamps, frames *frames) belonging {
	first, more := frames.next()
	switch {
	case !more && frames.commits == 0:
		return noLog
	case !more:
		return unclearLog // only commits without a stamp
	case file.now == 0 && first.before == 0:
		return unclearLog // neither has the file one
	}
	found := otherLog
	if file.now == first.before {
		found = file.fits(first)
	}
	for one := first; more && found != ownLog; one, more = frames.next() {
		if one.now == file.now {
			found = max(found, file.fits(one))
		}
	}
	return found
}

// fits says whether a commit of the log, with the file's stamp, is the file's own.
func (s stamps) fits(commit stamps) belonging {
	switch {
	case s.schema == commit.schema:
		return ownLog
	case s.schema > commit.schema:
		return otherLog // VACUUM INTO has made it
	}
	return unclearLog // .backup has made it; or the commit changed the schema
}

// frames reads a log as SQLite does after a crash: until the first frame that is not whole, or of
// an earlier use of the log.
type frames struct {
	log     io.Reader
	order   binary.ByteOrder // of its checksums
	salt    [8]byte
	sum     [2]uint32
	frame   []byte
	commits int
	waiting []stamps // of the transaction whose frames are read
	ready   []stamps // of one that was committed
}

const (
	logHeader   = 32
	frameHeader = 24
	logMagic    = 0x377f0682 // and, with big-endian checksums, one more
)

// readFrames begins to read a log. It is not ok if SQLite takes the log for empty.
func readFrames(log io.Reader) (*frames, bool) {
	var header [logHeader]byte
	if _, err := io.ReadFull(log, header[:]); err != nil {
		return nil, false
	}
	f := &frames{log: bufio.NewReaderSize(log, 1<<20), order: binary.LittleEndian}
	magic, size := binary.BigEndian.Uint32(header[:]), binary.BigEndian.Uint32(header[8:])
	if magic == logMagic|1 {
		f.order = binary.BigEndian
	}
	if magic|1 != logMagic|1 || size < 512 || size > 65536 || size&(size-1) != 0 {
		return nil, false
	}
	copy(f.salt[:], header[16:])
	f.add(header[:24])
	f.frame = make([]byte, frameHeader+size)
	ok := f.matches(header[24:])
	return f, ok
}

// next returns the stamps of the next committed first page.
func (f *frames) next() (stamps, bool) {
	for len(f.ready) == 0 {
		if !f.read() {
			return stamps{}, false
		}
	}
	one := f.ready[0]
	f.ready = f.ready[1:]
	return one, true
}

// read reads a frame.
func (f *frames) read() bool {
	if _, err := io.ReadFull(f.log, f.frame); err != nil || !bytes.Equal(f.frame[8:16], f.salt[:]) {
		return false
	}
	f.add(f.frame[:8])
	f.add(f.frame[frameHeader:])
	if !f.matches(f.frame[16:frameHeader]) {
		return false
	}
	if binary.BigEndian.Uint32(f.frame) == 1 {
		f.waiting = append(f.waiting, stampsOf(f.frame[frameHeader:]))
	}
	if binary.BigEndian.Uint32(f.frame[4:]) != 0 { // the last of a transaction
		f.ready, f.waiting = f.waiting, nil
		f.commits++
	}
	return true
}

// add adds bytes, a multiple of eight, to the checksum.
func (f *frames) add(data []byte) {
	a, b := f.sum[0], f.sum[1]
	for ; len(data) >= 8; data = data[8:] {
		a += f.order.Uint32(data) + b
		b += f.order.Uint32(data[4:]) + a
	}
	f.sum = [2]uint32{a, b}
}

func (f *frames) matches(sum []byte) bool {
	return f.sum == [2]uint32{binary.BigEndian.Uint32(sum), binary.BigEndian.Uint32(sum[4:])}
}
