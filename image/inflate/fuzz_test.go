package inflate_test

import (
	"bytes"
	stdflate "compress/flate"
	stdgzip "compress/gzip"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"github.com/cri-runtime/cri-runtime/image/inflate"
)

// FuzzInflate compares with compress/gzip: same bytes, and accepted or refused alike.
// Reserved header flags, which only we refuse, are cleared.
func FuzzInflate(f *testing.F) {
	for _, data := range plain() {
		for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 6} {
			f.Add(compress(f, level, data[:min(len(data), 20000)]), false)
		}
	}
	f.Add(bytes.Join([][]byte{compress(f, 6, []byte("ab")), compress(f, 0, nil), []byte("more")}, nil), false)
	f.Add([]byte("\x03\x00"), true)
	f.Fuzz(func(t *testing.T, in []byte, raw bool) {
		if raw { // only the blocks: the checksum is made to fit, so that they count
			in = enclose(in)
		}
		in = bytes.Clone(in)
		if len(in) > 3 {
			in[3] &= 0x1f
		}
		want, wantErr := limited(stdgzip.NewReader(bytes.NewReader(in)))
		for _, r := range []io.Reader{bytes.NewReader(in), &pieces{in: in}} {
			got, gotErr := limited(inflate.NewReader(r))
			if (gotErr == nil) != (wantErr == nil) {
				t.Fatalf("got %v, want %v", gotErr, wantErr)
			}
			if !bytes.Equal(got, want) && (wantErr == nil || !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want)) {
				t.Fatalf("got %d other bytes than the %d wanted", len(got), len(want))
			}
			if errors.Is(wantErr, io.ErrUnexpectedEOF) != errors.Is(gotErr, io.ErrUnexpectedEOF) && len(got) == len(want) {
				t.Logf("got %v, want %v", gotErr, wantErr)
			}
		}
	})
}

func limited(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, 1<<20))
	return out, err
}

func enclose(blocks []byte) []byte {
	in := append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), blocks...)
	src := bytes.NewReader(blocks)
	data, err := io.ReadAll(io.LimitReader(stdflate.NewReader(src), 1<<20))
	if err != nil {
		return in
	}
	in = in[:len(in)-src.Len()]
	crc, n := crc32.ChecksumIEEE(data), len(data)
	return append(in, byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24), byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
}

// pieces gives 1 to 40 bytes at a time.
type pieces struct {
	in []byte
	n  int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	p.n++
	n := copy(b, p.in[:min(len(p.in), 1+p.n*7%40)])
	p.in = p.in[n:]
	return n, nil
}
