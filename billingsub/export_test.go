package billingsub

import "omiappreg.org/keyrotation/internal/api"

// Endpoints returns what is served over NATS and over HTTP.
func (b *Billing) Endpoints() []api.Endpoint { return b.endpoints() }
