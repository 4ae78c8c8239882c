package podinit

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestImagesAreStaticExecutables(t *testing.T) {
	for arch, target := range targets {
		t.Run(arch, func(t *testing.T) {
			f, err := elf.NewFile(bytes.NewReader(target.image()))
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != elf.ET_EXEC || f.Machine != target.machine || len(f.Progs) != 2 {
				t.Fatalf("got type %v, machine %v, %d segments", f.Type, f.Machine, len(f.Progs))
			}
			text := f.Progs[0]
			if f.Entry < text.Vaddr || f.Entry >= text.Vaddr+text.Filesz || text.Flags&elf.PF_W != 0 {
				t.Errorf("entry %#x is not in the segment at %#x, or that is writable", f.Entry, text.Vaddr)
			}
			b, err := io.ReadAll(text.Open())
			if err != nil {
				t.Fatal(err)
			}
			sets := b[len(b)-16:]
			if got := binary.LittleEndian.Uint64(sets[8:]); got != 1<<(uint(unix.SIGCHLD)-1) {
				t.Errorf("second signal set: got %#x, want SIGCHLD", got)
			}
			// The addresses that the code computes are those of the sets.
			if arch == "arm64" {
				code := b[64+2*56:]
				for index, want := range map[int]int{5: len(code) - 16, 10: len(code) - 8} {
					w := binary.LittleEndian.Uint32(code[4*index:])
					if got := index*4 + int(w>>29&3|w>>5&0x7ffff<<2); got != want {
						t.Errorf("instruction %d: got address %d, want %d", index, got, want)
					}
				}
			}
		})
	}
}

func TestProgramCannotBeReadOrChanged(t *testing.T) {
	f, err := Program()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, unix.EBADF) {
		t.Errorf("read: got %v, want %v", err, unix.EBADF)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o111 {
		t.Errorf("mode: got %v, want 0111", got)
	}
	if os.Getuid() != 0 {
		return
	}
	// Even one who may ignore the mode finds a sealed file.
	path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: got %v, want %v", err, unix.EPERM)
	}
}

func TestFilterIsWellFormed(t *testing.T) {
	b := Filter()
	n := len(b) / 8
	for i := range n {
		code := binary.NativeEndian.Uint16(b[8*i:])
		if code == 0x15 && (i+1+int(b[8*i+2]) >= n || i+1+int(b[8*i+3]) >= n) {
			t.Errorf("instruction %d jumps out of the program", i)
		}
	}
	if last := binary.NativeEndian.Uint16(b[8*(n-1):]); last != 0x06 {
		t.Errorf("last instruction: got code %#x, want a return", last)
	}
}
