package sqldb

import "strconv"

// users says whether another process has a SQLite file open, by the lock that SQLite keeps on it
// for as long.
type users struct {
	open bool
	pid  int32 // of one of them; 0: it is not known
}

// Where SQLite locks a file, see "Locking" in its os.h: the bytes PENDING, RESERVED and SHARED.
// Each connection in WAL mode has a read lock on SHARED for as long as it is open.
const (
	lockFrom  = 0x40000000
	lockBytes = 512
)

func (u users) String() string {
	if u.pid > 0 {
		return "process " + strconv.Itoa(int(u.pid))
	}
	return "a process"
}
