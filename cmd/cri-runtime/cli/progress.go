package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/image"
)

const (
	pollEvery = 200 * time.Millisecond
	lineEvery = time.Second // without a terminal, for one pull
)

// The forms of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

// pullView shows pulls to somebody, each time anew.
type pullView interface {
	update(pulls []image.PullStatus)
	clear() // takes away what is not to stay
}

func newView(show *screen, output string) pullView {
	switch {
	case output == outputJSON:
		return &jsonView{out: show.out}
	case show.terminal:
		return liveView{show}
	}
	return &plainView{show: show, pulls: map[uint64]*seen{}}
}

// liveView draws bars at the bottom of a terminal.
type liveView struct{ show *screen }

func (v liveView) update(pulls []image.PullStatus) {
	width, height := v.show.size()
	var lines []string
	for _, p := range pulls {
		lines = append(lines, pullLines(p, width, (height-1)/max(len(pulls), 1))...)
	}
	if len(lines) >= height { // what scrolled away could not be drawn over
		lines = lines[:height-1]
	}
	v.show.show(lines)
}

func (v liveView) clear() { v.show.show(nil) }

// plainView prints lines for a log: one for each change of a layer's state, and for each
// pull at most one a second about how far it is.
type plainView struct {
	show  *screen
	pulls map[uint64]*seen
}

type seen struct {
	last   time.Time
	done   int64
	layers map[int]string
}

func (v *plainView) update(pulls []image.PullStatus) {
	for _, p := range pulls {
		s := v.pulls[p.Number]
		if s == nil {
			s = &seen{layers: map[int]string{}, last: time.Now()}
			v.pulls[p.Number] = s
		}
		now := p.Started.Add(time.Duration(p.Seconds * float64(time.Second)))
		for i, l := range p.Layers {
			state := string(l.State)
			if l.Waiting != nil {
				state += l.Waiting.Reason
			}
			if s.layers[i] == state {
				continue
			}
			s.layers[i] = state
			v.show.step("layer", "%s", plainLayer(l, now))
		}
		if time.Since(s.last) >= lineEvery && s.done != p.Done {
			s.last, s.done = time.Now(), p.Done
			v.show.step("image", "%s %s", printable(p.Ref), summary(p))
		}
	}
}

func plainLayer(l image.LayerStatus, now time.Time) string {
	text := fmt.Sprintf("%s %s, %s", shortDigest(l.Digest), stateWord(l.State), size(l.Total))
	if l.Waiting != nil {
		text += ", " + waiting(l.Waiting, now)
	} else if l.State == image.LayerDownloading && l.Host != "" {
		text += " from " + printable(l.Host)
	}
	return text
}

func (*plainView) clear() {}

// jsonView prints a line for each pull that has moved.
type jsonView struct {
	out  io.Writer
	last map[uint64]string
}

func (v *jsonView) update(pulls []image.PullStatus) {
	now := map[uint64]string{}
	for _, p := range pulls {
		state := p
		state.Seconds = 0 // time alone is no news
		key, err := json.Marshal(state)
		if err != nil {
			continue
		}
		if now[p.Number] = string(key); v.last[p.Number] != string(key) {
			printJSON(v.out, p)
		}
	}
	v.last = now
}

func (*jsonView) clear() {}

func printJSON(out io.Writer, doc any) {
	_ = json.NewEncoder(out).Encode(doc) // as fmt.Fprint, where nobody asks either
}

// follow shows the pull of an image until done. A runtime that tells nothing gets idle.
func (c *client) follow(ctx context.Context, name string, done <-chan struct{}, view pullView, idle func()) {
	defer view.clear()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		reply, err := c.images.ImageStatus(ctx, &rt.ImageStatusRequest{Image: imageSpec(name), Verbose: true})
		var p image.PullStatus
		if err == nil && reply.Info["pull"] != "" && json.Unmarshal([]byte(reply.Info["pull"]), &p) == nil {
			view.update([]image.PullStatus{p})
			continue
		}
		idle()
	}
}
