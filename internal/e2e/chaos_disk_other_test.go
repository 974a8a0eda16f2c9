//go:build !linux

package e2e_test

import "errors"

const noFullDisk = "this system can't limit the files of a process that runs"

func (*daemon) fillDisk(uint64) (func() error, error) { return nil, errors.New(noFullDisk) }
