package inflate_test

import (
	"bytes"
	stdflate "compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"

	"github.com/cri-runtime/cri-runtime/image/inflate"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// plain gives data of several kinds, each of which makes other codes.
func plain() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	var text, skewed, periods []byte
	for len(text) < 220<<10 {
		text = fmt.Appendf(text, "line %d of some text, %x\n", rng.IntN(1000), rng.Uint32())
	}
	for len(skewed) < 220<<10 { // few symbols: short codes, entries of several literals
		skewed = append(skewed, "\x00\x00\x00\x00\x01\x01\x02\xff"[rng.IntN(8)])
	}
	for p := 1; p < 70; p++ { // matches at every short distance, of every length
		unit := noise[p*100 : p*100+p]
		for n := 3; n < 400; n += 7 {
			periods = append(periods, noise[n*3:n*3+5]...)
			for i := range n + p {
				periods = append(periods, unit[i%p])
			}
		}
	}
	var far []byte // matches at distances up to the whole window
	for range 12 {
		far = append(far, noise[:32<<10]...)
		far = append(far, noise[rng.IntN(1000)+64<<10:][:rng.IntN(300)]...)
	}
	return map[string][]byte{
		"empty": nil, "byte": {'x'}, "text": text, "noise": noise, "skewed": skewed,
		"zeros": make([]byte, 400<<10), "periods": periods, "far": far,
	}
}

func compress(t testing.TB, level int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// inflated reads all of r, with Read in pieces of n or, for n 0, with WriteTo.
func inflated(r io.Reader, n int) ([]byte, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var out bytes.Buffer
	if n == 0 {
		_, err = z.WriteTo(&out)
	} else {
		_, err = io.CopyBuffer(struct{ io.Writer }{&out}, struct{ io.Reader }{z}, make([]byte, n))
	}
	return out.Bytes(), err
}

func TestDecodesWhatOthersWrite(t *testing.T) {
	for name, data := range plain() {
		for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 6} {
			zipped := compress(t, level, data)
			for _, n := range []int{0, 1000, 7} {
				got, err := inflated(bytes.NewReader(zipped), n)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, level %d, reads of %d: %d bytes, %v; want %d", name, level, n, len(got), err, len(data))
				}
			}
		}
	}
}

func TestInputInPieces(t *testing.T) {
	for name, data := range plain() {
		zipped := compress(t, 6, data)
		for how, r := range map[string]io.Reader{
			"bytes":    iotest.OneByteReader(bytes.NewReader(zipped)),
			"halves":   iotest.HalfReader(bytes.NewReader(zipped)),
			"data+EOF": iotest.DataErrReader(bytes.NewReader(zipped)),
		} {
			got, err := inflated(r, 0)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s as %s: %d bytes, %v; want %d", name, how, len(got), err, len(data))
			}
		}
	}
}

func TestInputThatFails(t *testing.T) {
	broken := errors.New("broken")
	zipped := compress(t, 6, plain()["text"])
	for _, n := range []int{0, 5, 10, 11, 5000} {
		r := io.MultiReader(bytes.NewReader(zipped[:n]), iotest.ErrReader(broken))
		if _, err := inflated(r, 0); !errors.Is(err, broken) {
			t.Errorf("input broken after %d bytes: %v", n, err)
		}
	}
}

func member(flags byte, fields string, data []byte) []byte {
	var b bytes.Buffer
	b.WriteString("\x1f\x8b\x08" + string(flags) + "\x00\x00\x00\x00\x00\xff")
	b.WriteString(fields)
	w, _ := stdflate.NewWriter(&b, 6)
	w.Write(data)
	w.Close()
	end := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(data))
	b.Write(binary.LittleEndian.AppendUint32(end, uint32(len(data))))
	return b.Bytes()
}

func TestMembers(t *testing.T) {
	a, b, none := member(0, "", []byte("abc")), member(0, "", []byte("defg")), member(0, "", nil)
	named := member(8|16, "name\x00comment\x00", []byte("n"))
	extra := member(4, "\x03\x00\x00\x01\x02", []byte("e"))
	head := "\x1f\x8b\x08\x02\x00\x00\x00\x00\x00\xff"
	summed := member(2, string(binary.LittleEndian.AppendUint16(nil, uint16(crc32.ChecksumIEEE([]byte(head))))), []byte("s"))
	wrong := bytes.Clone(summed)
	wrong[10] ^= 1
	long := member(8, string(bytes.Repeat([]byte("x"), 600))+"\x00", nil)
	badCRC, badSize := bytes.Clone(a), bytes.Clone(a)
	badCRC[len(a)-8] ^= 1
	badSize[len(a)-1] ^= 1
	// The second member reaches into the first one, which is not its window.
	var reach bytes.Buffer
	w, _ := stdflate.NewWriterDict(&reach, 9, []byte("abcabcabcabc"))
	w.Write([]byte("abcabcabcabc"))
	w.Close()
	intoFirst := append([]byte(head[:3]+"\x00"+head[4:]), reach.Bytes()...)
	for name, tc := range map[string]struct {
		in   [][]byte
		want string
		err  error
	}{
		"one":              {[][]byte{a}, "abc", nil},
		"two":              {[][]byte{a, b}, "abcdefg", nil},
		"empty ones":       {[][]byte{none, a, none, none, b, none}, "abcdefg", nil},
		"name and comment": {[][]byte{named, a}, "nabc", nil},
		"extra":            {[][]byte{extra}, "e", nil},
		"header checksum":  {[][]byte{summed}, "s", nil},
		"wrong checksum":   {[][]byte{wrong}, "", inflate.ErrHeader},
		"long name":        {[][]byte{long}, "", inflate.ErrHeader},
		"reserved flag":    {[][]byte{member(32, "", nil)}, "", inflate.ErrHeader},
		"nothing":          {nil, "", io.EOF},
		"zeros behind":     {[][]byte{a, make([]byte, 100)}, "abc", inflate.ErrHeader},
		"zero behind":      {[][]byte{a, {0}}, "abc", io.ErrUnexpectedEOF},
		"garbage behind":   {[][]byte{a, []byte("garbage, which is not a member")}, "abc", inflate.ErrHeader},
		"crc":              {[][]byte{badCRC}, "abc", inflate.ErrChecksum},
		"size":             {[][]byte{badSize, b}, "abc", inflate.ErrChecksum},
		"into the first":   {[][]byte{member(0, "", []byte("abcabcabcabcabc")), intoFirst}, "abcabcabcabcabc", inflate.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			in := bytes.Join(tc.in, nil)
			got, err := inflated(bytes.NewReader(in), 0)
			if string(got) != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, tc.want, tc.err)
			}
			if eof := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); tc.err != nil && !eof && !errors.Is(err, errdef.ErrInvalid) {
				t.Errorf("%v is not of kind %v", err, errdef.ErrInvalid)
			}
			old := theirs(in)
			if (old == nil) != (tc.err == nil) {
				t.Errorf("klauspost/compress says %v, want %v", old, tc.err)
			}
		})
	}
}

func theirs(in []byte) error {
	z, err := gzip.NewReader(bytes.NewReader(in))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, z)
	return err
}

// TestTruncated cuts a stream of all block types at each byte.
func TestTruncated(t *testing.T) {
	p := plain()
	whole := bytes.Join([][]byte{
		compress(t, 6, p["text"][:3000]), compress(t, 0, p["noise"][:500]),
		compress(t, 1, []byte("fixed")), compress(t, 9, p["periods"][:3000]),
	}, nil)
	ends := map[int]bool{}
	for _, n := range []int{len(compress(t, 6, p["text"][:3000])), len(compress(t, 0, p["noise"][:500])), len(compress(t, 1, []byte("fixed")))} {
		last := 0
		for e := range ends {
			last = max(last, e)
		}
		ends[last+n] = true
	}
	want, err := inflated(bytes.NewReader(whole), 0)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(whole); n++ {
		got, err := inflated(bytes.NewReader(whole[:n]), 0)
		if !bytes.HasPrefix(want, got) {
			t.Fatalf("cut at %d: other bytes", n)
		}
		if ends[n] != (err == nil) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestCloseTwiceAndUseAfter(t *testing.T) {
	z, err := inflate.NewReader(bytes.NewReader(compress(t, 6, []byte("abc"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(z.Close(), z.Close()); err != nil {
		t.Error(err)
	}
	if n, err := z.Read(make([]byte, 10)); n != 0 || err == nil {
		t.Errorf("read after close: %d, %v", n, err)
	}
}
