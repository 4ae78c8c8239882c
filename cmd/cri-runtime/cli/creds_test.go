package cli

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const secret = "geheim-123"

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	enc := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	config := file("config.json", fmt.Sprintf(`{"auths": {
		"https://index.docker.io/v1/": {"auth": %q},
		"r.example:5000": {"username": "plain", "password": %q},
		"r.example:5000/team": {"auth": %q},
		"http://token.example": {"identitytoken": %q, "auth": %q},
		"bearer.example": {"registrytoken": %q},
		"bad.example": {"auth": "!"}, "empty.example": {}
	}, "credHelpers": {"gcr.example": "gcloud"}}`, enc("hub:"+secret), secret, enc("team:"+secret+":x"), secret, enc("00000000:"), secret))
	for name, tc := range map[string]struct {
		creds credentials
		stdin string
		ref   string
		want  string // user password identity registry
		err   string
	}{
		"none":                {credentials{}, "", "x", "none", ""},
		"file":                {credentials{file: file("c", "me:"+secret+":with:colons\n")}, "", "x", "me " + secret + ":with:colons  ", ""},
		"stdin":               {credentials{file: "-"}, "me:" + secret + "\r\n", "x", "me " + secret + "  ", ""},
		"no colon":            {credentials{file: "-"}, secret, "x", "", "--creds: want one line"},
		"two lines":           {credentials{file: "-"}, "me:" + secret + "\nmore", "x", "", "--creds: want one line"},
		"no file":             {credentials{file: filepath.Join(dir, "absent")}, "", "x", "", "no such file"},
		"the secret itself":   {credentials{file: "me:" + secret}, "", "x", "", "never the credentials themselves"},
		"hub":                 {credentials{auth: config}, "", "busybox:1", "hub " + secret + "  ", ""},
		"hub, spelled out":    {credentials{auth: config}, "", "docker.io/library/busybox@sha256:00", "hub " + secret + "  ", ""},
		"port":                {credentials{auth: config}, "", "r.example:5000/x:1", "plain " + secret + "  ", ""},
		"namespace":           {credentials{auth: config}, "", "r.example:5000/team/x:1", "team " + secret + ":x  ", ""},
		"namespace by itself": {credentials{auth: config}, "", "r.example:5000/teams/x:1", "plain " + secret + "  ", ""},
		"identity token":      {credentials{auth: config}, "", "token.example/x", "00000000  " + secret + " ", ""},
		"registry token":      {credentials{auth: config}, "", "bearer.example/x", "   " + secret, ""},
		"no entry":            {credentials{auth: config}, "", "public.example/x", "none", ""},
		"another port":        {credentials{auth: config}, "", "r.example:5001/x", "none", ""},
		"not base64":          {credentials{auth: config}, "", "bad.example/x", "", `auths["bad.example"].auth`},
		"empty entry":         {credentials{auth: config}, "", "empty.example/x", "", "credential helper"},
		"helper":              {credentials{auth: config}, "", "gcr.example/x", "", "credential helper"},
		"no JSON":             {credentials{auth: "-"}, secret, "x", "", "--auth: the file is not JSON"},
		"JSON of other kind":  {credentials{auth: "-"}, `{"auths": "` + secret + `"}`, "x", "", "--auth: the file is not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.creds.read(strings.NewReader(tc.stdin), tc.ref)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), secret) {
					t.Errorf("got %v, want %q and no secret", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := "none"
			if got != nil {
				text = strings.Join([]string{got.Username, got.Password, got.IdentityToken, got.RegistryToken}, " ")
			}
			if text != tc.want {
				t.Errorf("got %q, want %q", text, tc.want)
			}
		})
	}
}
