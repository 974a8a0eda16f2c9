package vectors_test

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"omiappreg.org/keyrotation/internal/vectors"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	set := vectors.Load(t)
	for _, f := range set.Requests {
		for _, c := range f.Cases {
			if c.ProcessedAt < c.StoredAt {
				t.Errorf("%s: %s is processed before it is stored", f.File, c.Name)
			}
		}
	}
}

// TestNothingIsPassedOver: what Read does not understand is an error, because no test would use it.
func TestNothingIsPassedOver(t *testing.T) {
	t.Parallel()
	const request = `"name":"a","subject":"s","stored_at":1,"expect":"committed"`
	for name, tc := range map[string]struct{ file, want string }{
		"kind":              {`{"records":[]}`, "kind that no test reads"},
		"no-json":           {"# Vectors", "invalid character"},
		"no-cases":          {`{"state":{},"cases":[]}`, "no cases"},
		"no-events":         {`{"origin":"o","trusted_registry_keys":["k"],"events":[]}`, "no cases"},
		"no-keys":           {`{"keys":{}}`, "no cases"},
		"no-canonical":      {`{"cases":[]}`, "no cases"},
		"no-message":        {`{"state":{},"cases":[{` + request + `}]}`, "message_base64"},
		"two-messages":      {`{"state":{},"cases":[{` + request + `,"message":"","message_base64":""}]}`, "message_base64"},
		"bad-base64":        {`{"state":{},"cases":[{` + request + `,"message_base64":"*"}]}`, "illegal base64"},
		"same-name":         {`{"state":{},"cases":[{` + request + `,"message":""},{` + request + `,"message":""}]}`, "used twice"},
		"no-expectation":    {`{"state":{},"cases":[{"name":"a","subject":"s","stored_at":1,"message":""}]}`, "expect is missing"},
		"event-expectation": {`{"origin":"o","trusted_registry_keys":["k"],"events":[{"name":"a","subject":"s","message":"","expect":"maybe"}]}`, "neither applied"},
		"short-seed":        {`{"keys":{"a":{"seed":"00","public_key":"k"}}}`, "32 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := fstest.MapFS{"more.json": {Data: []byte(tc.file)}}
			if _, err := vectors.Read(folder); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one about %q", err, tc.want)
			}
		})
	}
}

// TestEveryKindIsThere: if a kind's last file were gone, its tests would pass and do nothing.
func TestEveryKindIsThere(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"a.json": `{"cases":[{"name":"a","input":"1","canonical":"1","sha256":"00"}]}`,
		"b.json": `{"keys":{"a":{"seed":"` + strings.Repeat("00", 32) + `","public_key":"k"}}}`,
		"c.json": `{"origin":"o","trusted_registry_keys":["k"],"events":[{"name":"a","subject":"s","message":"","expect":"applied"}]}`,
		"d.json": `{"state":{},"cases":[{"name":"a","subject":"s","stored_at":1,"message_base64":"/w==","expect":"committed"}]}`,
	}
	folder := fstest.MapFS{}
	for name, file := range files {
		folder[name] = &fstest.MapFile{Data: []byte(file)}
	}
	set, err := vectors.Read(folder)
	if err != nil {
		t.Fatal(err)
	}
	c := set.Requests[0].Cases[0]
	if !bytes.Equal(c.Message(), []byte{0xff}) || c.ProcessedAt != c.StoredAt {
		t.Errorf("the request was read as %q, processed at %d", c.Message(), c.ProcessedAt)
	}
	for name, file := range maps.Clone(folder) {
		delete(folder, name)
		if _, err := vectors.Read(folder); err == nil {
			t.Errorf("nobody misses %s", name)
		}
		folder[name] = file
	}
}
