package images

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
)

// newRandom is data that does not compress. It is the generator of math/rand, whose
// sequence for a seed never changes.
func newRandom(seed int64) io.Reader { return rand.New(rand.NewSource(seed)) }

// text is an endless source program; it compresses to about a third.
type text struct {
	r    *rand.Rand
	rest bytes.Buffer
}

func newText(seed int64) io.Reader { return &text{r: rand.New(rand.NewSource(seed))} }

func (t *text) Read(p []byte) (int, error) {
	for t.rest.Len() < len(p) {
		fmt.Fprintf(&t.rest, "const value%d = require('./module-%x').then(x => x.%x);\n", t.r.Intn(1000), t.r.Int31(), t.r.Int31())
	}
	return t.rest.Read(p)
}

// smallFiles is like node_modules: many small text files in a deep tree.
func (w *layerWriter) smallFiles(seed int64, prefix string, n int) error {
	r := rand.New(rand.NewSource(seed))
	for i := range n {
		name := fmt.Sprintf("%s/node_modules/pkg-%d/lib/%d/file-%d.js", prefix, i/40, i%7, i)
		size := int64(500 + r.Intn(r.Intn(12000)+1))
		if err := w.file(name, newText(seed+int64(i)), size); err != nil {
			return err
		}
	}
	return nil
}
