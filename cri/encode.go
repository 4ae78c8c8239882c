package cri

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nanos is CRI's time: nanoseconds since 1970, 0 for none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// infoKey is where clients look for what is shown in verbose answers.
const infoKey = "info"

// encodeInfo writes details as JSON under one key, as both peers do.
func encodeInfo(info map[string]any) (map[string]string, error) {
	text, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("encode verbose info: %w", err)
	}
	return map[string]string{infoKey: string(text)}, nil
}

// addInfo puts a value beside the details, under a key of its own.
func addInfo(info map[string]string, key string, value any) (map[string]string, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode verbose info: %w", err)
	}
	if info == nil {
		info = map[string]string{}
	}
	info[key] = string(text)
	return info, nil
}

func uint64Value(n uint64) *pb.UInt64Value { return &pb.UInt64Value{Value: n} }

func optionalUint64(n *uint64) *pb.UInt64Value {
	if n == nil {
		return nil
	}
	return uint64Value(*n)
}

// batchBytes is about how much one message of a stream holds: clients take 16 MiB, and
// less than that keeps neither side waiting.
const batchBytes = 1 << 20

// sendBatches sends every item once, several in a message. No items, no message: the
// end of the stream says it all.
func sendBatches[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, size := 1, proto.Size(items[0])
		for n < len(items) {
			if size += proto.Size(items[n]); size > batchBytes {
				break
			}
			n++
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// convert encodes all of a list.
func convert[From, To any](from []From, encode func(From) To) []To {
	to := make([]To, 0, len(from))
	for _, f := range from {
		to = append(to, encode(f))
	}
	return to
}
