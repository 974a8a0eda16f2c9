package client_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// FuzzGuardMsg is [FuzzGuard] for NATS messages: headers of a stranger's making, before a Guard that believes every
// signature.
func FuzzGuardMsg(f *testing.F) {
	w := newSigWorld(f)
	m := wire{uri: sigSubject, header: http.Header(signedMsg(f, w).Header), body: sigBody}
	f.Add(m.uri, m.header.Get("Signature-Input"), m.header.Get("Signature"), m.header.Get("Content-Digest"), "content-type", "application/json", []byte(m.body))
	params := strings.Replace(sigParams, `tag="omi"`, `tag="omi-nats"`, 1)
	m = w.byHand(m, []string{"@subject", "content-digest", "x"}, params)
	f.Add(m.uri, m.header.Get("Signature-Input"), m.header.Get("Signature"), m.header.Get("Content-Digest"), "X", "1", []byte(m.body))
	m = w.byHand(wire{uri: "a\n\"x\": b", header: http.Header{}}, []string{"@subject"}, params) // a line of the caller's making
	f.Add(m.uri, m.header.Get("Signature-Input"), m.header.Get("Signature"), "", "Y", "1", []byte(nil))
	f.Add("a", `omi=("@subject")`+params, "omi=:AA==:", "", "Signature", "omi=?0", []byte(nil))
	f.Fuzz(func(t *testing.T, subject, input, signature, digest, name, value string, data []byte) {
		believer := new(believer)
		guard := client.NewGuard(client.GuardConfig{Checker: believer, Now: w.now})
		message := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{"Signature-Input": {input}, "Signature": {signature}}}
		if digest != "" { // one that is there must be covered
			message.Header["Content-Digest"] = []string{digest}
		}
		message.Header[name] = []string{value}
		caller, err := guard.VerifyMsg(t.Context(), message)
		if err != nil {
			if refusal := (*events.Refusal)(nil); !errors.As(err, &refusal) || refusal.Detail == "" {
				t.Errorf("not a refusal that tells why: %v", err)
			}
			return
		}
		base := string(believer.asked.Message)
		lines := strings.Split(base, "\n")
		list, _, _ := strings.Cut(lines[len(lines)-1], ")")
		if components := strings.Count(list, `"`)/2 - 1; components != len(lines)-1 || strings.Count("\n"+base, "\n\"@subject\": "+subject+"\n") != 1 {
			t.Errorf("the base of %q is\n%s", subject, base)
		}
		if caller.Target != believer.asked.Target || len(data) > 0 && strings.Count("\n"+base, "\n\"content-digest\": ") != 1 {
			t.Errorf("%s passed with the base\n%s", caller.Target, base)
		}
		if _, err := guard.VerifyMsg(t.Context(), message); err == nil {
			t.Error("it passed twice")
		}
	})
}

// FuzzSignMsg: what is signed passes once, and with any part of it changed it does not; what can't be signed is an error.
func FuzzSignMsg(f *testing.F) {
	w := newSigWorld(f)
	f.Add(sigSubject, []byte(sigBody), "application/json", "7", byte(0))
	f.Add("a.b", []byte(nil), "", "\tx y ", byte(1))
	f.Add("a\r\n.b", []byte("x"), "é", "a\nb", byte(2))
	f.Fuzz(func(t *testing.T, subject string, data []byte, mediaType, field string, change byte) {
		m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{"Content-Type": {mediaType}, "Article": {field}}}
		if err := client.SignMsg(w.id, m, "article"); err != nil {
			return
		}
		cfg := w.cfg
		cfg.Now, cfg.Fields = nil, []string{"Article"} // it is signed by the wall's clock
		guard := client.NewGuard(cfg)
		changed := &nats.Msg{Subject: subject, Data: append([]byte(nil), data...), Header: nats.Header{}}
		for name, values := range m.Header {
			changed.Header[name] = append([]string(nil), values...)
		}
		switch change % 5 {
		case 0:
			changed.Subject += "."
		case 1:
			changed.Data = append(changed.Data, ' ')
		case 2:
			changed.Header.Set("Content-Type", mediaType+"x")
		case 3:
			changed.Header.Del("Article")
		case 4:
			changed.Header.Add("Article", field)
		}
		if caller, err := guard.VerifyMsg(t.Context(), changed); err == nil {
			t.Errorf("changed in the way %d, it passed as %s's", change%5, caller.Target)
		}
		if caller, err := guard.VerifyMsg(t.Context(), m); err != nil || caller.Target != w.id.target {
			t.Errorf("signed, it is refused: %v", err)
		}
		if _, err := guard.VerifyMsg(t.Context(), m); err == nil {
			t.Error("it passed twice")
		}
	})
}
