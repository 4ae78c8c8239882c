package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/cri/admin"
)

const outputSVG = "svg"

func traceCommand() *cobra.Command {
	var socket string
	output := outputText
	cmd := &cobra.Command{
		Use:   "trace POD",
		Short: "Show how a pod started, or what it waits for",
		Long: `Show the phases of a pod's start with their times: what the kubelet asked, each part of it, and when each container
logged its first line. POD is an id, a unique beginning of one, or NAMESPACE/NAME.

A part that is not over yet says for how long it has run and, if that is known, what it waits for. A start that failed is
shown too, for as long as the daemon remembers it: the last 64 failures and pulls of all pods. What is between two calls is
the time of the kubelet, or of whoever else asked. Of a container that was started again and again, the first start and
the last few are kept.`,
		Example: "  cri-runtime trace default/web\n  cri-runtime trace --output svg 3f2a > start.svg",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains([]string{outputText, outputJSON, outputSVG}, output) {
				return fmt.Errorf("--output: %q is none of text, json, svg", output)
			}
			c := admin.NewClient(socket)
			defer c.Close()
			t, err := c.Trace(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("trace: %w", err)
			}
			switch show := newScreen(cmd.OutOrStdout()); {
			case output == outputJSON:
				printJSON(show.out, t)
			case output == outputSVG:
				fmt.Fprint(show.out, traceSVG(t))
			case show.terminal:
				width, _ := show.size()
				fmt.Fprintln(show.out, strings.Join(traceBars(t, width), "\n"))
			default:
				fmt.Fprintln(show.out, traceHead(t))
				for _, s := range sections(t) {
					table(show.out, traceTable(s))
				}
			}
			return nil
		},
	}
	adminFlag(cmd.Flags(), &socket)
	cmd.Flags().StringVarP(&output, "output", "o", output, `"text": bars on a terminal, else a table; "json"; "svg"`)
	return cmd
}

// sectionGap is the silence after which what follows is drawn on an axis of its own: a
// container that is started an hour later would make all else invisible.
const sectionGap = time.Minute

// leastStep is what a part takes that is worth a line: in a pod without image volumes,
// making them is two comparisons.
const leastStep = 10 * time.Microsecond

// A section is what is drawn on one axis.
type section struct {
	begun time.Time
	span  time.Duration
	rows  []traceRow
}

// A traceRow is one line of a waterfall.
type traceRow struct {
	label    string
	kind     rowKind
	at, took time.Duration // at: after the section's begin
	running  bool
	failed   bool
	beyond   bool // a moment after the end of the axis
	note     string
}

type rowKind int

const (
	rowOp   rowKind = iota // a call
	rowStep                // a part of the call above
	rowMark                // a moment
)

// sections puts the operations on as few axes as show them.
func sections(t *admin.Trace) []section {
	var out []section
	var end time.Time
	for _, op := range t.Ops {
		if len(out) == 0 || op.Begun.Sub(end) > sectionGap {
			out = append(out, section{begun: op.Begun})
		}
		s := &out[len(out)-1]
		s.add(op)
		if last := s.begun.Add(s.span); last.After(end) {
			end = last
		}
	}
	for i := range out {
		out[i].stretch()
	}
	return out
}

// stretch makes room for moments a little after the last operation. What a program logs
// much later must not make the start invisible.
func (s *section) stretch() {
	limit := s.span * 3 / 2
	for i := range s.rows {
		if r := &s.rows[i]; r.at > limit {
			r.beyond = true
		} else {
			s.span = max(s.span, r.at)
		}
	}
}

// add draws an operation: a row for it, and one for each part.
func (s *section) add(op admin.TraceOp) {
	at := op.Begun.Sub(s.begun)
	whole := traceRow{label: opLabel(op), at: at, took: op.Took(), running: op.Running, failed: op.Error != ""}
	switch {
	case op.Running:
		whole.note = "not over"
	case op.Error != "":
		whole.note = "failed"
	}
	if op.Joined > 0 {
		whole.note = strings.TrimPrefix(fmt.Sprintf("%s, asked for %d more times", whole.note, op.Joined), ", ")
	}
	s.put(whole)
	for i, step := range op.Steps {
		row := traceRow{label: step.Name, kind: rowStep, at: at, took: step.Took}
		last := i == len(op.Steps)-1
		if last {
			row.running, row.failed = op.Running, op.Error != ""
			row.note = ending(op)
		}
		if last || step.Took >= leastStep {
			s.put(row)
		}
		at += step.Took
	}
	if op.FirstLog != nil {
		s.put(traceRow{label: "first log line at", kind: rowMark, at: op.FirstLog.Sub(s.begun)})
	}
}

// ending says how the last part went, if it did not go well.
func ending(op admin.TraceOp) string {
	switch {
	case op.Error != "":
		return printable(op.Error)
	case op.Running && op.Waits != "":
		return "so far; " + printable(op.Waits)
	case op.Running:
		return "so far"
	}
	return ""
}

func (s *section) put(r traceRow) {
	s.rows = append(s.rows, r)
	if r.kind != rowMark {
		s.span = max(s.span, r.at+r.took)
	}
}

func opLabel(op admin.TraceOp) string {
	label := op.Name
	if op.Container != "" {
		label += " " + op.Container
	}
	if op.Attempt > 0 {
		label += fmt.Sprintf(" (attempt %d)", op.Attempt)
	}
	if op.Image != "" {
		label += " " + op.Image
	}
	return printable(label)
}

// traceHead says which pod it is and how its start went.
func traceHead(t *admin.Trace) string {
	head := fmt.Sprintf("%s/%s", t.Namespace, t.Name)
	if t.Pod != "" {
		head += "  " + shortID(string(t.Pod))
	}
	head += "  " + t.State
	if first := sections(t); len(first) > 0 {
		head += ", " + first[0].begun.Local().Format("2006-01-02 15:04:05")
	}
	if t.Problem != "" {
		head += ": " + t.Problem
	}
	return printable(head)
}

// fine prints a duration of a start: microseconds count in a part, not in a minute.
func fine(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000)
	}
	return period(d)
}

// traceTable is for what is no terminal.
func traceTable(s section) [][]string {
	rows := [][]string{{"AT", "TOOK", "WHAT", ""}}
	for _, r := range s.rows {
		took, label := fine(r.took), r.label
		if r.kind != rowOp {
			label = "  " + label
		}
		if r.kind == rowMark {
			took = ""
		}
		rows = append(rows, []string{fine(r.at), took, label, r.note})
	}
	return rows
}

const (
	labelShare  = 3 // of a terminal's width one part in three is for labels
	tookWidth   = 9
	narrowTrace = 60 // a terminal narrower than this gets no bars
)

// traceBars draws the waterfall for a terminal, no line longer than width but those that
// say what went wrong.
func traceBars(t *admin.Trace, width int) []string {
	lines := []string{fit(traceHead(t), width+1)}
	for _, s := range sections(t) {
		labels := 0
		for _, r := range s.rows {
			labels = max(labels, len(r.label)+2)
		}
		share := width / labelShare
		if width < narrowTrace {
			share = max(width-tookWidth-1, 1)
		}
		labels = min(labels, share)
		room := width - labels - tookWidth - 4
		if width < narrowTrace {
			room = 0
		}
		head := fmt.Sprintf("%-*s %*s  %s", labels, s.begun.Local().Format("15:04:05.000"), tookWidth, "", axis(s.span, room))
		lines = append(lines, "", strings.TrimRight(head, " "))
		for _, r := range s.rows {
			lines = append(lines, barRow(r, s.span, labels, room)...)
		}
	}
	return lines
}

// barRow is one line of the waterfall, and one below it for a note.
func barRow(r traceRow, span time.Duration, labels, room int) []string {
	label, took := r.label, fine(r.took)
	if r.kind != rowOp {
		label = "  " + label
	}
	if r.kind == rowMark {
		took = fine(r.at)
	}
	label = fit(label, labels+1)
	line := fmt.Sprintf("%-*s %*s  ", labels, label, tookWidth, took)
	if room > 0 {
		from, to := place(r, span, room)
		line += strings.Repeat(" ", from) + strings.Repeat(r.ink(), to-from)
	}
	lines := []string{strings.TrimRight(line, " ")}
	if r.note != "" {
		lines = append(lines, "    "+r.note)
	}
	return lines
}

// place is where a row's bar begins and ends; everything is at least one wide.
func place(r traceRow, span time.Duration, room int) (from, to int) {
	if span <= 0 {
		return 0, 1
	}
	scale := float64(room) / float64(span)
	from = max(min(int(float64(r.at)*scale), room-1), 0)
	return from, min(max(int(float64(r.at+r.took)*scale), from+1), room)
}

// ink is what a bar is drawn with.
func (r traceRow) ink() string {
	switch {
	case r.failed:
		return "!"
	case r.running, r.beyond:
		return ">"
	case r.kind == rowMark:
		return "*"
	case r.kind == rowOp:
		return "="
	}
	return "-"
}

// ticks are round times on an axis, about one in each part.
func ticks(span time.Duration, parts int) []time.Duration {
	if span <= 0 || parts <= 0 {
		return nil
	}
	for power := time.Microsecond; ; power *= 10 {
		for _, step := range []time.Duration{power, 2 * power, 5 * power} {
			if span/step > time.Duration(parts) {
				continue
			}
			var out []time.Duration
			for at := time.Duration(0); at <= span; at += step {
				out = append(out, at)
			}
			return out
		}
	}
}

// tickLabel prints a round time.
func tickLabel(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	s := d.String()
	s = strings.Replace(s, "m0s", "m", 1)
	return strings.Replace(s, "h0m", "h", 1)
}

// axis writes the times above the bars.
func axis(span time.Duration, room int) string {
	var b strings.Builder
	for _, at := range ticks(span, room/12) {
		pos, label := int(float64(room)*float64(at)/float64(span)), tickLabel(at)
		if pos < b.Len() || pos+len(label) > room {
			continue
		}
		b.WriteString(strings.Repeat(" ", pos-b.Len()) + label + " ")
	}
	return strings.TrimRight(b.String(), " ")
}
