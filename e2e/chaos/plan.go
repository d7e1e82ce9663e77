package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds. All end by themselves after the fault's For, and what was ended is started again.
const (
	KillProcessor   Kind = "kill -9 of a processor"
	KillSink        Kind = "kill -9 of a sink"
	FreezeProcessor Kind = "SIGSTOP of a processor"
	FreezeSink      Kind = "SIGSTOP of a sink"
	StopProcessor   Kind = "SIGTERM of a processor"
	StopSink        Kind = "SIGTERM of a sink"

	KillBroker     Kind = "kill -9 of a broker"
	StopBroker     Kind = "SIGTERM of a broker"
	MoveLeaders    Kind = "leaders moved"
	CutBroker      Kind = "connections to a broker cut"
	ResetBroker    Kind = "connections to a broker reset now and then"
	SlowBroker     Kind = "connections to a broker slowed"
	SilenceBroker  Kind = "connections to a broker silent"
	GrowInputs     Kind = "input topics given more partitions"
	KillReceiver   Kind = "kill -9 of the receiver"
	SlowReceiver   Kind = "receiver slow"
	FailReceiver   Kind = "receiver failing"
	LateReceiver   Kind = "receiver takes and answers too late"
	CutEndpoint    Kind = "connections to the receiver cut"
	ResetEndpoint  Kind = "connections to the receiver reset amid requests"
	SlowEndpoint   Kind = "connections to the receiver slowed"
	SilentEndpoint Kind = "connections to the receiver silent"

	// Burst is traffic at ten times the rate that the installation sustains, which is measured before. Plan draws none.
	Burst Kind = "burst of ten times the sustainable rate"
)

// A Fault is one thing that goes wrong.
type Fault struct {
	At     time.Duration // since the beginning of the faults
	For    time.Duration
	Kind   Kind
	Target int // number of the process or broker, from 0; 0 where there is one
}

// String is a line for people.
func (f Fault) String() string {
	return fmt.Sprintf("%8s  %s %d for %s", f.At.Round(time.Millisecond), f.Kind, f.Target+1, f.For.Round(time.Millisecond))
}

// track is a series of faults of which one ends before the next begins.
type track []choice

type choice struct {
	kind        Kind
	targets     int
	least, most time.Duration
}

// sessionTimeout is that of processors and sinks: a process that is frozen for longer is a zombie when it wakes.
const sessionTimeout = 10 * time.Second

// growAt is when the input topics grow, as a share of the run: once, since partitions cannot be taken back.
const growAt = 0.4

func tracks(processors, sinks, brokers int) []track {
	return []track{
		{
			{KillProcessor, processors, 0, 4 * time.Second},
			{KillSink, sinks, 0, 4 * time.Second},
			{FreezeProcessor, processors, sessionTimeout + time.Second, sessionTimeout + 12*time.Second},
			{FreezeSink, sinks, sessionTimeout + time.Second, sessionTimeout + 12*time.Second},
			{StopProcessor, processors, 0, 12 * time.Second},
			{StopSink, sinks, 0, 12 * time.Second},
		},
		{
			{KillBroker, brokers, 0, 15 * time.Second},
			{StopBroker, brokers, 0, 10 * time.Second},
			{MoveLeaders, 1, 0, 0},
			{CutBroker, brokers, time.Second, 15 * time.Second},
			{ResetBroker, brokers, 5 * time.Second, 15 * time.Second},
			{SlowBroker, brokers, 5 * time.Second, 20 * time.Second},
			{SilenceBroker, brokers, 3 * time.Second, 20 * time.Second},
		},
		{
			{KillReceiver, 1, 0, 10 * time.Second},
			{SlowReceiver, 1, 5 * time.Second, 15 * time.Second},
			{FailReceiver, 1, 5 * time.Second, 15 * time.Second},
			{LateReceiver, 1, 5 * time.Second, 15 * time.Second},
			{CutEndpoint, 1, time.Second, 10 * time.Second},
			{ResetEndpoint, 1, 5 * time.Second, 15 * time.Second},
			{SlowEndpoint, 1, 5 * time.Second, 15 * time.Second},
			{SilentEndpoint, 1, 3 * time.Second, 15 * time.Second},
		},
	}
}

// Between two faults of a track, and what a broker or process needs to be back.
const (
	leastRest = 2 * time.Second
	mostRest  = 8 * time.Second
)

// Plan draws the faults of a run: the same for the same arguments. They are in the order of At, and those of one track do not
// overlap. All have ended when the duration is over. kinds restricts the draw to some; nil: all.
func Plan(seed uint64, duration time.Duration, processors, sinks, brokers int, kinds []Kind) []Fault {
	var plan []Fault
	for n, t := range tracks(processors, sinks, brokers) {
		if kinds != nil {
			t = slices.DeleteFunc(t, func(c choice) bool { return !slices.Contains(kinds, c.kind) })
		}
		if len(t) == 0 {
			continue
		}
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		between := func(least, most time.Duration) time.Duration {
			return least + time.Duration(random.Int64N(int64(most-least)+1))
		}
		at := between(leastRest, mostRest)
		for deck := []choice(nil); ; {
			if len(deck) == 0 {
				deck = slices.Clone(t)
				random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
			}
			c := deck[0]
			deck = deck[1:]
			f := Fault{At: at, For: between(c.least, c.most), Kind: c.kind, Target: random.IntN(c.targets)}
			if f.At+f.For > duration {
				break
			}
			plan = append(plan, f)
			at += f.For + between(leastRest, mostRest)
		}
	}
	if kinds == nil || slices.Contains(kinds, GrowInputs) {
		plan = append(plan, Fault{At: time.Duration(growAt * float64(duration)), Kind: GrowInputs})
	}
	slices.SortStableFunc(plan, func(a, b Fault) int { return int(a.At - b.At) })
	return plan
}
