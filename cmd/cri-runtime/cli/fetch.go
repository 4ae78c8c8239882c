package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	answerLines = 8
	answerBytes = 64 << 10
)

// httpPort finds the container port that is called http.
func (p *pod) httpPort() (number int32, ok bool) {
	for _, c := range p.all() {
		for _, o := range c.Ports {
			if o.Name == "http" && o.Protocol == "TCP" {
				return o.ContainerPort, true
			}
		}
	}
	return 0, false
}

// fetch gets a page from the pod, trying until its server listens, and shows it.
func fetch(ctx context.Context, ip string, port int32, show *screen) error {
	url := "http://" + net.JoinHostPort(ip, strconv.Itoa(int(port))) + "/"
	// No proxy of the environment knows the pod's network.
	transport := &http.Transport{Proxy: nil, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var last error
	for {
		answer, err := get(ctx, c, url)
		if err == nil {
			show.step("http", "%s answers %s", url, answer[0])
			for _, line := range answer[1:] {
				show.say("          %s", line)
			}
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fetch %s: no answer in time: %w", url, last)
		case <-time.After(100 * time.Millisecond): // no kernel tells when another's server listens
		}
	}
}

// get returns the status and the first lines of the body.
func get(ctx context.Context, c *http.Client, url string) ([]string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := c.Do(request)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil { // without the URL, which the caller says
			err = inner
		}
		return nil, err
	}
	defer response.Body.Close()
	answer := []string{response.Status}
	lines := bufio.NewScanner(io.LimitReader(response.Body, answerBytes))
	for lines.Scan() {
		if len(answer) > answerLines {
			answer = append(answer, "...")
			break
		}
		answer = append(answer, printable(lines.Text()))
	}
	return answer, lines.Err()
}
