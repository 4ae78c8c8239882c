package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"path/filepath"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// minRSA is the smallest modulus that counts as safe.
const minRSA = 2048

// key is a public key that signatures may be made with.
type key struct {
	public crypto.PublicKey
}

func (r *reader) keyFile(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%.300q is not an absolute path: %w", path, errdef.ErrInvalid)
	}
	return r.file(path)
}

func keyData(s string) ([]byte, error) {
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdef.ErrInvalid)
	}
	return data, nil
}

// parseKey reads one public key, PEM around PKIX, as cosign writes it.
func parseKey(source string, get func(string) ([]byte, error)) (key, error) {
	data, err := get(source)
	if err != nil {
		return key{}, fmt.Errorf("read key: %w", err)
	}
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return key{}, fmt.Errorf("key is not in PEM: %w", errdef.ErrInvalid)
	case block.Type != "PUBLIC KEY":
		return key{}, fmt.Errorf("this is a %.60q, want a PUBLIC KEY: %w", block.Type, errdef.ErrInvalid)
	case len(bytes.TrimSpace(rest)) > 0:
		return key{}, fmt.Errorf("something follows the key; several go into keyPaths or keyDatas: %w", errdef.ErrInvalid)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return key{}, fmt.Errorf("parse key: %w: %w", err, errdef.ErrInvalid)
	}
	switch p := public.(type) {
	case *ecdsa.PublicKey: // on one of the NIST curves; P-224 is not safe enough
		if p.Curve.Params().BitSize < 256 {
			return key{}, fmt.Errorf("curve %s is too small: %w", p.Curve.Params().Name, errdef.ErrInvalid)
		}
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < minRSA {
			return key{}, fmt.Errorf("RSA key of %d bits, want %d at least: %w", n, minRSA, errdef.ErrInvalid)
		}
	case ed25519.PublicKey:
	default:
		return key{}, fmt.Errorf("keys of type %T are not supported; want ECDSA, RSA or Ed25519: %w", public, errdef.ErrInvalid)
	}
	return key{public}, nil
}

// verify says whether sig is this key's signature of the payload, in the forms that
// cosign writes: ECDSA and RSA (PKCS #1 v1.5) over SHA-256, Ed25519 over the payload.
func (k key) verify(payload, sig []byte) bool {
	sum := sha256.Sum256(payload)
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, sum[:], sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], sig) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(p, payload, sig)
	}
	return false
}
