package archive

import "testing"

// Encode is a manifest as it is stored, whatever it says.
func Encode(t *testing.T, m *Manifest) []byte {
	b, err := encodeManifest(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
