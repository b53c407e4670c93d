//! The whole engine under the simulator: random work, crashes at any point, failing disks; the state after each recovery must be the
//! state of one instant, not before the last completed flush. `ASHLAR_SIM_SEEDS` sets how many seeds run, `ASHLAR_SIM_TIMES` how many times as many as usual, `ASHLAR_SIM_SEED` one of them.

mod capacity;
mod changes;
mod concurrent;
mod cut_short;
mod declared;
mod divide;
mod every_step;
mod exhaustive;
mod full;
mod harness;
mod killed;
mod large_reads;
mod model;
mod overfull;
mod overwrite;
mod planted;
mod protection;
mod rebuild;
mod recompress;
mod regressions;
mod reserve;
mod scrub;
mod seeds;
mod slow;
mod snapshots;
mod sparse;
mod status;
mod stress;
mod trickle;
mod upkeep;
mod work;
