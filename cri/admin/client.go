package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/cri-runtime/cri-runtime/image"
)

// maxLine bounds a line of an answer: some thousand layers.
const maxLine = 16 << 20

// Client asks a Server.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client of a unix socket. Nothing is opened before the first call.
func NewClient(socket string) *Client {
	socket = strings.TrimPrefix(socket, "unix://")
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		Proxy: nil, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

var errBroken = errors.New("the daemon broke off its answer; its log says why")

// Error is a failure that the server told.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

// do sends a request and returns the body of an answer that is well.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	// The host is there because HTTP wants one.
	req, err := http.NewRequestWithContext(ctx, method, "http://cri-runtime"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f Failure
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(text, &f) != nil || f.Error == "" {
		f.Error = fmt.Sprintf("%s: answer %s", c.socket, resp.Status)
	}
	return nil, &Error{resp.StatusCode, f.Error}
}

// explain says what it means that the socket cannot be opened.
func (c *Client) explain(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("connect: no socket %s: is the daemon running (`cri-runtime serve`)?", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect: nobody listens on %s: has the daemon ended?", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to %s: permission denied: only root may", c.socket)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errBroken
	}
	return fmt.Errorf("%s: %w", c.socket, err)
}

// Pulls lists the pulls in flight and the last ones.
func (c *Client) Pulls(ctx context.Context) ([]image.PullStatus, error) {
	list, err := document[PullList](ctx, c, http.MethodGet, "/v1/pulls")
	return list.Pulls, err
}

// Garbage lists what nobody owns, and deletes it unless it is a dry run.
func (c *Client) Garbage(ctx context.Context, dryRun bool) (Garbage, error) {
	method := http.MethodPost
	if dryRun {
		method = http.MethodGet
	}
	return document[Garbage](ctx, c, method, "/v1/gc")
}

// Verify compares what is stored of an image with its digests.
func (c *Client) Verify(ctx context.Context, ref string) error {
	_, err := document[Verified](ctx, c, http.MethodPost, "/v1/images/verify?"+url.Values{"ref": {ref}}.Encode())
	return err
}

// document reads an answer that is one document.
func document[T any](ctx context.Context, c *Client, method, path string) (doc T, err error) {
	body, err := c.do(ctx, method, path, nil)
	if err != nil {
		return doc, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&doc); err != nil {
		return doc, fmt.Errorf("read answer: %w", err)
	}
	return doc, nil
}

// Watch calls show with the list, again and again, until ctx ends or show fails.
func (c *Client) Watch(ctx context.Context, show func([]image.PullStatus) error) error {
	body, err := c.do(ctx, http.MethodGet, "/v1/pulls?watch=1", nil)
	if err != nil {
		return err
	}
	return eachLine(body, func(line PullList) (more bool, err error) { return true, show(line.Pulls) })
}

// Load sends an archive. progress may be nil.
func (c *Client) Load(ctx context.Context, r io.Reader, progress func(image.LoadProgress)) ([]image.Loaded, error) {
	body, err := c.do(ctx, http.MethodPost, "/v1/images/load", io.NopCloser(r))
	if err != nil {
		return nil, err
	}
	var images []image.Loaded
	err = eachLine(body, func(l LoadLine) (more bool, err error) {
		switch {
		case l.Error != "":
			return false, &Error{http.StatusOK, l.Error}
		case l.Progress == nil:
			images = l.Images
			return false, nil
		case progress != nil:
			progress(*l.Progress)
		}
		return true, nil
	})
	return images, err
}

// eachLine decodes lines until one is the last. It closes body.
func eachLine[T any](body io.ReadCloser, each func(T) (more bool, err error)) error {
	defer body.Close()
	in := bufio.NewScanner(body)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		if len(bytes.TrimSpace(in.Bytes())) == 0 {
			continue
		}
		var line T
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if more, err := each(line); err != nil || !more {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return errBroken
}

// Save writes an archive of images to w.
func (c *Client) Save(ctx context.Context, w io.Writer, refs []string, format image.ArchiveFormat) (int64, error) {
	q := url.Values{"ref": refs}
	if format != "" {
		q.Set("format", string(format))
	}
	body, err := c.do(ctx, http.MethodGet, "/v1/images/save?"+q.Encode(), nil)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	n, err := io.Copy(w, body)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, errBroken
	case err != nil:
		return n, fmt.Errorf("write archive: %w", err)
	}
	return n, nil
}
