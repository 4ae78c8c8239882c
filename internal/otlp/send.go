package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // OTEL_EXPORTER_OTLP_COMPRESSION=gzip
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	exportMethod = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	answerLimit  = 64 << 10
	idleLimit    = 90 * time.Second
)

// sender opens nothing before the first request.
func (c *Config) sender() (sender, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w: %w", err, errdef.ErrInvalid)
	}
	var trust *tls.Config
	if u.Scheme == "https" {
		if trust, err = c.tls(); err != nil {
			return nil, err
		}
	}
	if c.Protocol == ProtocolGRPC {
		return c.overGRPC(u, trust)
	}
	return &httpSender{config: c, client: &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust, MaxIdleConns: 1, IdleConnTimeout: idleLimit,
	}}}, nil
}

func (c *Config) tls() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read certificates of the collector: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it: %w", c.CAFile, errdef.ErrInvalid)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read our certificate for the collector: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

type httpSender struct {
	config *Config
	client *http.Client
}

func (s *httpSender) send(ctx context.Context, body []byte) ([]byte, error) {
	if s.config.Gzip {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(body) // a bytes.Buffer takes everything
		_ = z.Close()
		body = packed.Bytes()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.config.Endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("send spans: %w", err)
	}
	for name, value := range s.config.Headers {
		r.Header.Set(name, value)
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	if s.config.Gzip {
		r.Header.Set("Content-Encoding", "gzip")
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("send spans: %w: %w", err, errRetry)
	}
	defer answer.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(answer.Body, answerLimit))
	switch code := answer.StatusCode; {
	case code == http.StatusTooManyRequests, code == http.StatusBadGateway, code == http.StatusServiceUnavailable, code == http.StatusGatewayTimeout:
		return nil, fmt.Errorf("send spans: the collector answers %s: %w", answer.Status, errRetry)
	case code/100 != 2:
		return nil, fmt.Errorf("send spans: the collector answers %s", answer.Status)
	case err != nil:
		return nil, fmt.Errorf("read the collector's answer: %w", err) // it has them
	}
	return reply, nil
}

func (s *httpSender) close() error {
	s.client.CloseIdleConnections()
	return nil
}

type grpcSender struct {
	config *Config
	conn   *grpc.ClientConn
}

func (c *Config) overGRPC(u *url.URL, trust *tls.Config) (sender, error) {
	creds := insecure.NewCredentials()
	if trust != nil {
		creds = credentials.NewTLS(trust)
	}
	conn, err := grpc.NewClient(u.Host, grpc.WithTransportCredentials(creds), grpc.WithIdleTimeout(idleLimit), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w: %w", err, errdef.ErrInvalid)
	}
	return &grpcSender{c, conn}, nil
}

func (s *grpcSender) send(ctx context.Context, body []byte) ([]byte, error) {
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(s.config.Headers))
	options := []grpc.CallOption{grpc.ForceCodec(raw{})}
	if s.config.Gzip {
		options = append(options, grpc.UseCompressor("gzip"))
	}
	var reply []byte
	err := s.conn.Invoke(ctx, exportMethod, &body, &reply, options...)
	switch status.Code(err) { //nolint:exhaustive // those of the OTLP specification that may pass
	case codes.OK:
		return reply, nil
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss, codes.ResourceExhausted:
		return nil, fmt.Errorf("send spans: %w: %w", err, errRetry)
	}
	return nil, fmt.Errorf("send spans: %w", err)
}

func (s *grpcSender) close() error { return s.conn.Close() }

// raw takes messages that are encoded already.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("message is a %T", v)
	}
	return *b, nil
}

func (raw) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("message is a %T", v)
	}
	*b = bytes.Clone(data)
	return nil
}
