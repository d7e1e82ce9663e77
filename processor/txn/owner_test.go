package txn

import (
	"maps"
	"slices"
	"testing"
)

func TestViewTakesAssignmentsWhole(t *testing.T) {
	var v view
	var paused []int32
	pause := func(begin map[string][]int32) {
		paused = append([]int32(nil), begin["in"]...)
		slices.Sort(paused)
	}
	assign := func(member string, full, added []int32) {
		paused = nil
		v.assign(t.Context(), member, map[string][]int32{"in": full}, map[string][]int32{"in": added}, pause)
	}
	at := func(p int32) *ownership { return v.owned[Partition{"in", p}] }

	assign("m1", []int32{0, 1, 2}, []int32{0, 1, 2})
	if !slices.Equal(paused, []int32{0, 1, 2}) || !v.joined {
		t.Fatalf("paused %v of a first assignment of three", paused)
	}
	zero, one, two := at(0), at(1), at(2)

	// A later one without a revoke that was heard of.
	assign("m1", []int32{0, 3}, []int32{3})
	if at(0) != zero || at(1) != nil || !slices.Equal(paused, []int32{3}) {
		t.Errorf("partition 0 is to be kept, 1 to go, 3 to begin: %v, paused %v", slices.Collect(maps.Keys(v.owned)), paused)
	}
	if one.ctx.Err() == nil || two.ctx.Err() == nil || zero.ctx.Err() != nil {
		t.Error("what went is to be cancelled, what was kept not")
	}

	// Lost and given back within one assignment: kgo begins it anew.
	assign("m1", []int32{0, 3}, []int32{0})
	if at(0) == zero || zero.ctx.Err() == nil || !slices.Equal(paused, []int32{0}) {
		t.Error("partition 0 is to begin anew")
	}
	if v.doubt {
		t.Error("no doubt so far")
	}

	v.drop(map[string][]int32{"in": {3, 9}})
	if at(3) != nil || at(0) == nil {
		t.Error("partition 3 alone is to go")
	}

	assign("m2", []int32{1}, []int32{1})
	if v.doubt {
		t.Error("a new member that keeps nothing is no doubt")
	}
	assign("m3", []int32{1}, nil)
	if !v.doubt {
		t.Error("a new member that seems to keep a partition is doubt")
	}
	v.drop(map[string][]int32{"in": {1}})
}
