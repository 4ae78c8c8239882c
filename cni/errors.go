package cni

import (
	"fmt"
	"strings"
)

// maxForeign is how much of a plugin's text goes into an error. Plugins are known to
// return whole stack traces or HTML pages, and the kubelet puts errors into events.
const maxForeign = 1024

// A PluginError is what a plugin, or our attempt to run it, reported.
type PluginError struct {
	Plugin  string
	Code    uint // of the CNI specification; 0 when it did not get to answer
	Msg     string
	Details string
	Err     error // the cause on our side, such as a deadline
}

// Error names the plugin.
func (e *PluginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plugin %s: %s", e.Plugin, e.Msg)
	if e.Details != "" {
		fmt.Fprintf(&b, " (%s)", e.Details)
	}
	return b.String()
}

// Unwrap gives the cause on our side.
func (e *PluginError) Unwrap() error { return e.Err }

// cut makes foreign text fit for a one-line error.
func cut(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(s), "?")
	if len(s) > maxForeign {
		s = strings.ToValidUTF8(s[:maxForeign], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s)
}
