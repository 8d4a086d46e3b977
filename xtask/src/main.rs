//! Skeleton.
fn main() -> anyhow::Result<()> {
    let f = std::env::args().nth(1).unwrap().parse()?;
    let g = guests::debian::fetch(f, &mut |m| eprintln!("{m}"))?;
    println!("{g:?}");
    Ok(())
}
