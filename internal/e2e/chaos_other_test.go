//go:build !unix

package e2e_test

import "errors"

const noPause = "this system has no SIGSTOP"

func (*daemon) pause() error  { return errors.New(noPause) }
func (*daemon) resume() error { return errors.New(noPause) }
