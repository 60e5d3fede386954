// SPDX-License-Identifier: GPL-2.0

//! Names: what is one, what is not, and how one is shown.

mod common;

use luo_abi::{
    error::Excerpt,
    name::{
        Compatible,
        Name,
        NameError,
        SessionName, //
    }, //
};
use proptest::prelude::*;

#[test]
fn text_that_fits() {
    let name = SessionName::from_str_bytes(b"vm-1").unwrap();
    assert_eq!(name.as_bytes(), b"vm-1");
    assert_eq!(name.as_cstr(), c"vm-1");
    assert_eq!(name.to_string(), "vm-1");
    assert_eq!(format!("{name:?}"), "\"vm-1\"");
    assert_eq!(SessionName::from_cstr(c"vm-1"), Ok(name));

    let mut padded = [0; 64];
    padded[..4].copy_from_slice(b"vm-1");
    assert_eq!(name.to_bytes_padded(), padded);
}

#[test]
fn longest_text() {
    let name = SessionName::from_str_bytes(&[b'x'; 63]).unwrap();
    assert_eq!(name.as_bytes().len(), 63);
    assert_eq!(SessionName::from_bytes(&name.to_bytes_padded()), Ok(name));
    assert_eq!(
        SessionName::from_str_bytes(&[b'x'; 64]),
        Err(NameError::TooLong { len: 64, max: 63 })
    );
    assert_eq!(
        Compatible::from_str_bytes(&[b'x'; 48]),
        Err(NameError::TooLong { len: 48, max: 47 })
    );
}

#[test]
fn no_names() {
    assert_eq!(SessionName::from_bytes(&[0; 64]), Err(NameError::Empty));
    assert_eq!(SessionName::from_str_bytes(b""), Err(NameError::Empty));
    assert_eq!(
        SessionName::from_bytes(&[b'x'; 64]),
        Err(NameError::Unterminated)
    );
    assert_eq!(
        SessionName::from_str_bytes(b"a\0b"),
        Err(NameError::EmbeddedNul)
    );
    assert_eq!(Name::<0>::from_bytes(&[]), Err(NameError::Unterminated));
    assert_eq!(Name::<1>::from_bytes(&[0]), Err(NameError::Empty));
    assert_eq!(
        Name::<0>::from_str_bytes(b"x"),
        Err(NameError::TooLong { len: 1, max: 0 })
    );
}

#[test]
fn what_follows_the_end_is_no_part_of_it() {
    let mut field = [0xff; 64];
    field[..3].copy_from_slice(b"ab\0");
    let name = SessionName::from_bytes(&field).unwrap();
    assert_eq!(name, SessionName::from_str_bytes(b"ab").unwrap());
    assert_eq!(name.to_bytes_padded()[3..], [0; 61]);
}

#[test]
fn shown_escaped() {
    let name = Compatible::from_str_bytes(b"a b\n\x1b[1m\"\\\x7f\xff").unwrap();
    assert_eq!(name.to_string(), r"a b\x0a\x1b[1m\x22\x5c\x7f\xff");
    assert_eq!(Excerpt::new(b"luo-v9\0junk").to_string(), "luo-v9");
    assert_eq!(
        Excerpt::new(&[b'y'; 40]).to_string(),
        format!("{}...", "y".repeat(32))
    );
    assert_eq!(Excerpt::new(b"").to_string(), "");
}

proptest! {
    #![proptest_config(common::cases(512))]

    #[test]
    fn any_field(field in prop::array::uniform32(any::<u8>())) {
        match Name::<32>::from_bytes(&field) {
            Ok(name) => {
                let len = name.as_bytes().len();
                prop_assert!(len > 0 && len < 32);
                prop_assert_eq!(name.as_bytes(), &field[..len]);
                prop_assert_eq!(field[len], 0);
                prop_assert_eq!(name.as_cstr().to_bytes(), name.as_bytes());
                prop_assert_eq!(Name::from_bytes(&name.to_bytes_padded()), Ok(name));
                prop_assert_eq!(Name::from_str_bytes(name.as_bytes()), Ok(name));
                prop_assert!(name.to_string().len() <= 4 * len);
                prop_assert!(name.to_string().chars().all(|c| c == ' ' || c.is_ascii_graphic()));
            }
            Err(NameError::Empty) => prop_assert_eq!(field[0], 0),
            Err(error) => {
                prop_assert_eq!(error, NameError::Unterminated);
                prop_assert!(!field.contains(&0));
            }
        }
    }

    #[test]
    fn order_is_that_of_the_text(a in "a{0,18}[a-cé]{1,4}", b in "a{0,18}[a-cé]{1,4}") {
        let name = |text: &str| SessionName::from_str_bytes(text.as_bytes()).unwrap();
        prop_assert_eq!(name(&a).cmp(&name(&b)), a.as_bytes().cmp(b.as_bytes()));
        prop_assert_eq!(name(&a) == name(&b), a == b);
    }
}
