// Package publicapi holds tests of what other modules see of this one: the packages outside of
// internal folders, and the modules that an importer gets along with them.
package publicapi
