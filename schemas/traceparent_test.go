package schemas

import "testing"

func TestValidTraceparent(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for value, want := range map[string]bool{
		good: true, "": false, "00": false, good[:54]: false, good + "0": false, good + "\n": false, good + "-x": false, "\n" + good[1:]: false,
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01": false, "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": false,
	} {
		if got := ValidTraceparent([]byte(value)); got != want {
			t.Errorf("ValidTraceparent(%q) = %v, want %v", value, got, want)
		}
	}
}
