package target

import "time"

// Job is long work that a target does by itself: a resync, a merge, a scrub.
type Job struct {
	Kind  JobKind
	State JobState

	// Done and Total are bytes; Total 0: not known yet.
	Done, Total int64
	// Rate is bytes a second over the last moments, 0 when nothing moved.
	Rate int64
	// Started is when this run of the work began, after a restart the restart.
	Started time.Time
	// Detail is for people: which leg, why it waits; may be empty.
	Detail string
}

// JobKind names the work.
type JobKind string

// Kinds of jobs.
const (
	JobResync JobKind = "resync"
	JobScrub  JobKind = "scrub"
	JobMerge  JobKind = "merge"
	JobCopy   JobKind = "copy"
)

// JobState says whether it goes on.
type JobState string

// States of jobs.
const (
	JobRunning JobState = "running"
	JobPaused  JobState = "paused"  // by the user, or because the device is suspended
	JobWaiting JobState = "waiting" // for another try
	JobFailed  JobState = "failed"  // stays so until somebody acts
)

// Left is the time the rest needs at the present rate; 0 when that is not known.
func (j Job) Left() time.Duration {
	if j.Rate <= 0 || j.Total <= j.Done {
		return 0
	}
	return time.Duration(float64(j.Total-j.Done) / float64(j.Rate) * float64(time.Second))
}

// Worker is a target that does jobs.
type Worker interface {
	// Jobs lists those that are not done, in no order.
	Jobs() []Job
}
