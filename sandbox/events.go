package sandbox

import "sync"

// eventBacklog is how many events a subscriber may be behind before it is cut off:
// the kubelet then lists again, which is what it does anyway after a lost stream.
const eventBacklog = 4096

// broadcaster hands each event to every subscriber and never waits for one.
type broadcaster struct {
	mu     sync.Mutex // guards all below
	subs   map[chan Event]struct{}
	closed bool
}

func (b *broadcaster) subscribe() (<-chan Event, func()) {
	ch := make(chan Event, eventBacklog)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(ch)
		return ch, func() {}
	}
	if b.subs == nil {
		b.subs = map[chan Event]struct{}{}
	}
	b.subs[ch] = struct{}{}
	return ch, func() { b.drop(ch) }
}

func (b *broadcaster) drop(ch chan Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.subs[ch]; ok {
		delete(b.subs, ch)
		close(ch)
	}
}

// wanted says whether anybody listens: making an event costs views of a whole pod.
func (b *broadcaster) wanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
}

func (b *broadcaster) send(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- e:
		default: // too slow: it is told by the end of its stream
			delete(b.subs, ch)
			close(ch)
		}
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for ch := range b.subs {
		delete(b.subs, ch)
		close(ch)
	}
}
