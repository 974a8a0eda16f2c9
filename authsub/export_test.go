package authsub

import "omiappreg.org/keyrotation/internal/api"

// Endpoints returns what is served over NATS and over HTTP.
func (a *Auth) Endpoints() []api.Endpoint { return a.endpoints() }
