package mirror

import (
	"context"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The runs of the crash tests of the leg record.

const notWorking = "write,fua,flush,zero errno=EIO"

var recordPlans = []recordPlan{
	{name: "creation", legs: "ab", fresh: true, run: func(r *recordRun) {
		r.write(1, 2, false)
		r.tb.filledUp()
		r.expect("in in")
		r.clear()
		r.write(9, 1, false)
		r.flush()
	}},
	{name: "writes", legs: "ab", run: func(r *recordRun) {
		r.write(4, 3, false)
		r.clear()
		r.write(5, 2, false)
		r.flush()
		r.write(17, 1, true)
		r.clear()
	}},
	{name: "leg 0 is lost", legs: "ab", run: func(r *recordRun) {
		r.write(8, 1, false)
		r.flush()
		r.faults["a"].SetText(notWorking)
		r.write(8, 2, true)
		r.expect("dropped in")
		r.flush()
		r.clear()
		r.write(20, 1, false)
		r.flush()
		r.clear()
	}},
	{name: "leg 1 is lost", legs: "ab", run: func(r *recordRun) {
		r.faults["b"].SetText(notWorking)
		r.write(8, 2, false)
		r.expect("in dropped")
		r.flush()
		r.clear()
		r.write(20, 1, true)
	}},
	{name: "leg 0 fails a flush", legs: "ab", run: func(r *recordRun) {
		r.write(8, 2, false)
		r.faults["a"].SetText("flush errno=EIO")
		r.flush()
		r.expect("dropped in")
		r.write(9, 1, false)
		r.clear()
		r.flush()
	}},
	{name: "leg 0 comes back", legs: "ab", run: func(r *recordRun) {
		r.faults["a"].SetText(notWorking)
		r.write(8, 2, false)
		r.clear()
		r.flush()
		r.write(16, 1, false)
		r.flush()
		r.faults["a"].Set()
		if err := r.tb.refill(0); err != nil {
			r.t.Error(err)
		}
		r.write(9, 1, false)
		r.tb.filledUp()
		r.expect("in in")
		r.write(30, 1, false)
		r.flush()
		r.clear()
	}},
	{name: "leg 0 comes back with another table", legs: "ab", run: func(r *recordRun) {
		r.faults["a"].SetText(notWorking)
		r.write(8, 2, false)
		r.clear()
		r.flush()
		r.faults["a"].Set()
		r.again()
		r.write(9, 1, false)
		r.tb.filledUp()
		r.expect("in in")
		r.clear()
		r.flush()
	}},
	{name: "one leg after the other", legs: "abc", run: func(r *recordRun) {
		r.faults["a"].SetText(notWorking)
		r.write(8, 2, false)
		r.faults["c"].SetText(notWorking)
		r.write(9, 1, false)
		r.expect("dropped in dropped")
		r.flush()
		r.clear()
		r.faults["a"].Set()
		if err := r.tb.refill(0); err != nil {
			r.t.Error(err)
		}
		r.tb.filledUp()
		r.write(9, 2, false)
		r.flush()
	}},
	{name: "a place is lost with a leg", legs: "abc", run: func(r *recordRun) {
		r.faults["a"].SetText(notWorking)
		r.files.fail("b", blockdev.ErrIO)
		r.write(8, 2, false)
		r.expect("dropped dropped in")
		r.flush()
		r.clear()
		r.write(8, 1, false)
		r.flush()
	}},
	{name: "a log in memory", legs: "ab", core: true, run: func(r *recordRun) {
		r.tb.filledUp()
		r.faults["a"].SetText(notWorking)
		r.write(8, 2, false)
		r.flush()
		r.write(9, 1, false)
		r.flush()
	}},
	{name: "the log is lost", legs: "ab", run: func(r *recordRun) {
		if _, err := r.tb.Message(context.Background(), []string{"policy", "log-failure=core"}); err != nil {
			r.t.Error(err)
		}
		r.faults["log"].SetText(notWorking)
		r.write(8, 2, false)
		r.flush()
		r.write(9, 1, false)
		r.write(20, 1, false)
	}},
	{name: "a leg is added", first: "ab", legs: "abc", run: func(r *recordRun) {
		r.write(8, 2, false)
		r.again()
		r.write(9, 1, false)
		r.flush()
		r.tb.filledUp()
		r.expect("in in in")
		r.clear()
		r.write(9, 2, false)
		r.flush()
	}},
	{name: "a leg is added in front", first: "bc", legs: "abc", run: func(r *recordRun) {
		r.write(8, 2, false)
		r.flush()
		r.again()
		r.tb.filledUp()
		r.expect("in in in")
		r.write(9, 2, false)
		r.flush()
		r.clear()
	}},
	{name: "the source is lost in a fill", legs: "abc", run: func(r *recordRun) {
		r.faults["c"].SetText(notWorking)
		r.write(8, 2, false)
		r.faults["c"].SetText("write,zero 16+4 hang")
		if err := r.tb.refill(2); err != nil {
			r.t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := r.faults["c"].AwaitHanging(ctx, 1); err != nil {
			r.t.Error(err)
		}
		r.faults["a"].SetText(notWorking)
		r.flush() // a write would wait for the copy
		r.expect("dropped in filling")
		r.faults["c"].Set()
		r.faults["c"].Release()
		r.tb.filledUp()
		r.expect("dropped in in")
		r.clear()
		r.flush()
	}},
	{name: "a policy is changed while a leg is gone", legs: "ab", run: func(r *recordRun) {
		r.faults["a"].SetText(notWorking)
		r.write(8, 2, true)
		for _, v := range []string{"retry=5s", "retry=6s", "retry=7s"} {
			if _, err := r.tb.Message(context.Background(), []string{"policy", v}); err != nil {
				r.t.Error(err)
			}
		}
		r.write(8, 1, true)
	}},
	{name: "both legs fail", legs: "ab", run: func(r *recordRun) {
		r.faults["a"].SetText("write short=512 errno=EIO")
		r.faults["b"].SetText("write errno=EIO")
		r.failing(4, 2)
		r.expect("in in")
		r.faults["a"].Set()
		r.faults["b"].Set()
		r.clear()
		r.flush()
	}},
}
