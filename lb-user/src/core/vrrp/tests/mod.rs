//! Timed traces of one to three virtual routers. Times are microseconds since the start.

mod election;
mod lease;
mod net;
mod schedules;
mod speed;
