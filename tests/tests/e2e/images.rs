//! Real disk images through the tools of other projects.

use ashlar_tests::Lab;
use ashlar_tests::require::{Need, met};
use serde_json::Value;

use crate::history::BLOCK;
use crate::tools::{SMALL, attach, create, expect_sound, shell, tool};

/// Runs of blocks that hold data (true) or only zeroes (false), as byte offsets and lengths.
type Map = Vec<(u64, u64, bool)>;

fn push(map: &mut Map, offset: u64, len: u64, data: bool) {
    match map.last_mut() {
        Some((_, last, kind)) if *kind == data => *last += len,
        _ => map.push((offset, len, data)),
    }
}

/// Where an image has blocks that are not all zeroes: exactly those are mapped in a volume, because zeroes take no space.
fn map_of(image: &[u8]) -> Map {
    let mut map = Map::new();
    for (index, block) in image.chunks(BLOCK).enumerate() {
        push(&mut map, (index * BLOCK) as u64, block.len() as u64, block.iter().any(|b| *b != 0));
    }
    map
}

fn map_from(extents: &Value, offset: &str, data: impl Fn(&Value) -> bool) -> Map {
    let mut map = Map::new();
    for extent in extents.as_array().expect("a list of extents") {
        let number = |key| extent[key].as_u64().unwrap_or_else(|| panic!("no {key} in {extent}"));
        push(&mut map, number(offset), number("length"), data(extent));
    }
    map
}

/// An ext4 image with programs and sources in it.
fn ext4_image(lab: &Lab) -> String {
    let image = lab.dir().join("ext4.img").display().to_string();
    let script = "mkdir \"$2.tree\"
        cp -r \"$1/blockdev\" \"$1/tools\" \"$1/docs\" \"$2.tree\"
        find /usr/bin /usr/sbin -xdev -maxdepth 1 -type f -readable -size -4000k -print0 | sort -z | sed -z -n 1,500p |
            xargs -0 cp -t \"$2.tree\" --update
        truncate -s 192M \"$2\"
        mkfs.ext4 -q -d \"$2.tree\" \"$2\"";
    shell(script, &[&ashlar_tests::binary::workspace().display().to_string(), &image]).expect_ok();
    image
}

#[test]
fn an_image_makes_the_round_trip() {
    let tools = ["qemu-img", "qemu-io", "nbdcopy", "nbdinfo", "mkfs.ext4"].map(Need::Tool);
    if !met("an_image_makes_the_round_trip", &tools) {
        return;
    }
    let lab = Lab::up(SMALL);
    let image = ext4_image(&lab);
    let mut uris = Vec::new();
    for name in ["first", "second"] {
        create(&lab, name, "192M");
        uris.push(attach(&lab, name, &["nbd"]));
    }
    let reduction = || lab.json(&["pool", "status"])["reduction"].clone();
    let unique = |reduction: &Value| reduction["unique"].as_f64().unwrap_or_else(|| panic!("no unique in {reduction}"));

    tool("nbdcopy", &["--flush", &image, &uris[0]]).expect_ok();
    let once = reduction();
    tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uris[1]]).expect_ok();
    let twice = reduction();
    // The same image again adds no data, only the map.
    let (ratio_once, ratio_twice) = (once["dedupe_ratio"].as_f64(), twice["dedupe_ratio"].as_f64());
    eprintln!("written once: {once}\nwritten twice: {twice}");
    let gained = ratio_twice.zip(ratio_once).map(|(twice, once)| twice / once);
    assert!(gained.is_some_and(|gained| (1.98..=2.02).contains(&gained)), "dedupe of two equal images: {gained:?}");
    assert!(unique(&twice) <= unique(&once) * 1.01, "{} bytes more", unique(&twice) - unique(&once));

    for uri in &uris {
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, uri]).expect_ok();
    }
    let back = format!("{image}.back");
    tool("nbdcopy", &[&uris[1], &back]).expect_ok();
    let bytes = std::fs::read(&image).expect("the image");
    assert!(bytes == std::fs::read(&back).expect("the copy"), "the image is not the same after a round trip");

    let expected = map_of(&bytes);
    assert!(expected.len() > 10, "the image has too few holes to tell anything: {expected:?}");
    for uri in &uris {
        let nbdinfo = tool("nbdinfo", &["--map", "--json", uri]).expect_ok().json();
        // Bit 0 of base:allocation: a hole.
        assert_eq!(map_from(&nbdinfo, "offset", |e| e["type"].as_u64().is_some_and(|t| t & 1 == 0)), expected);
        let qemu = tool("qemu-img", &["map", "-f", "raw", "--output=json", uri]).expect_ok().json();
        assert_eq!(map_from(&qemu, "start", |e| e["data"].as_bool() == Some(true)), expected);
    }

    // What is written, zeroed and discarded later shows in the map, and only there.
    let script =
        "qemu-io -f raw -d unmap -c 'write -P 9 100M 8k' -c 'write -z 0 64k' -c 'discard 64k 64k' -c flush \"$1\"";
    shell(script, &[&uris[0]]).expect_ok();
    let mut changed = bytes.clone();
    changed[100 << 20..(100 << 20) + 8192].fill(9);
    changed[..128 << 10].fill(0);
    let nbdinfo = tool("nbdinfo", &["--map", "--json", &uris[0]]).expect_ok().json();
    assert_eq!(map_from(&nbdinfo, "offset", |e| e["type"].as_u64().is_some_and(|t| t & 1 == 0)), map_of(&changed));
    let compared = tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uris[0]]).expect_failure();
    assert_eq!(compared.status.code(), Some(1), "{compared}");
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uris[1]]).expect_ok();
    expect_sound(&lab);
}
