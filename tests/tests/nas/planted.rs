//! The model bites: every planted bug is caught by some seed, and the same seed passes without it.

use nas::planted::{Bug, plant};

use super::one;

fn caught(bug: Bug) {
    for seed in 1..=300 {
        plant(Some(bug));
        let found = one(seed, false);
        plant(None);
        if let Err(why) = found {
            println!("{bug:?}: seed {seed}: {why}");
            if let Err(why) = one(seed, false) {
                panic!("seed {seed} fails without {bug:?} too: {why}");
            }
            return;
        }
    }
    panic!("{bug:?} was not caught");
}

macro_rules! planted {
    ($($test:ident: $bug:ident,)*) => {$(
        #[test]
        fn $test() {
            caught(Bug::$bug);
        }
    )*};
}

planted! {
    given_out_early: GivenOutEarly,
    discarded_early: DiscardedEarly,
    not_written_first: NotWrittenFirst,
    not_zeroed: NotZeroed,
    attributes_left_out: AttributesLeftOut,
    bitmaps_left_out: BitmapsLeftOut,
    fsync_not_committed: FsyncNotCommitted,
    fsync_not_flushed: FsyncNotFlushed,
    fdatasync_without_size: FdatasyncWithoutSize,
    orphan_not_listed: OrphanNotListed,
    rename_in_two: RenameInTwo,
    hash_is_name: HashIsName,
}
