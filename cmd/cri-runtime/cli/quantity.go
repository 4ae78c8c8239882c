package cli

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strings"
)

// quantity is an amount as Kubernetes writes them: 100m, 1.5, 64Mi, 1e3.
type quantity struct{ milli int64 } // thousandths, rounded up

var quantityText = regexp.MustCompile(`^([0-9]+(?:\.[0-9]*)?|\.[0-9]+)((?:[eE][+-]?[0-9]{1,2})?)(|[numkMGTPE]|[KMGTPE]i)$`)

// UnmarshalJSON takes numbers and strings.
func (q *quantity) UnmarshalJSON(body []byte) error {
	text := strings.Trim(string(body), `"`)
	m := quantityText.FindStringSubmatch(text)
	if m == nil || m[2] != "" && m[3] != "" {
		return &json.UnmarshalTypeError{Value: fmt.Sprintf("%q, which is no quantity", text)}
	}
	value, ok := new(big.Rat).SetString(m[1] + m[2])
	if !ok {
		return &json.UnmarshalTypeError{Value: fmt.Sprintf("%q, which is no quantity", text)}
	}
	value.Mul(value, unit(m[3])).Mul(value, big.NewRat(1000, 1))
	whole, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	if !whole.IsInt64() {
		return &json.UnmarshalTypeError{Value: fmt.Sprintf("%q, which is too large", text)}
	}
	q.milli = whole.Int64()
	return nil
}

func unit(suffix string) *big.Rat {
	if suffix == "" {
		return big.NewRat(1, 1)
	}
	power := func(base, n int64) *big.Rat {
		return new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(n), nil))
	}
	if i := strings.Index("num", suffix); i >= 0 {
		return new(big.Rat).Inv(power(1000, int64(3-i)))
	}
	n := int64(strings.IndexByte("kMGTPE", strings.ToLower(suffix)[0])) + 1
	if suffix[0] != 'k' {
		n = int64(strings.IndexByte("KMGTPE", suffix[0])) + 1
	}
	if strings.HasSuffix(suffix, "i") {
		return power(1024, n)
	}
	return power(1000, n)
}

func (q quantity) value() int64 { return (q.milli + 999) / 1000 }
