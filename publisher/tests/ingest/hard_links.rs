//! Hard links within archives and into the repository.

use super::world::*;

#[test]
fn hard_links_are_groups_within_a_directory_and_files_across() {
    let world = World::new();
    for catalog in ["", " --catalog"] {
        let top = if catalog.is_empty() { "/h/" } else { "/h/ catalog" };
        let members = [
            file("a/one", "1"),
            hard("a/two", "a/one"),
            hard("b/one", "./a/two"),
            hard("b/two", "a/one"),
            hard("forward", "later"),
            hard("chain", "forward"),
            file("later", "2"),
            symlink("s", "x"),
            hard("t", "s"),
            file("replaced", "3"),
            hard("keeps", "replaced"),
            file("replaced", "4"),
            hard("itself", "itself2"),
            file("itself2", "5"),
            hard("itself2", "itself2"),
        ];
        let report = world.ingest(&format!("--base h --delete h{catalog}"), Some(&archive(&members)));
        assert_eq!(report.broken_links, 2);
        assert_eq!(
            world.tree(),
            format!(
                "{top}\n\
                 /h/a/\n\
                 /h/a/one \"1\" (one=two)\n\
                 /h/a/two \"1\" (one=two)\n\
                 /h/b/\n\
                 /h/b/one \"1\" (one=two)\n\
                 /h/b/two \"1\" (one=two)\n\
                 /h/chain \"2\" (chain=forward=later)\n\
                 /h/forward \"2\" (chain=forward=later)\n\
                 /h/itself \"5\" (itself=itself2)\n\
                 /h/itself2 \"5\" (itself=itself2)\n\
                 /h/keeps \"3\"\n\
                 /h/later \"2\" (chain=forward=later)\n\
                 /h/replaced \"4\"\n\
                 /h/s -> x (s=t)\n\
                 /h/t -> x (s=t)\n"
            )
        );
        let again = world.ingest(&format!("--base h{catalog}"), Some(&archive(&members)));
        assert_eq!(again.revision, again.revision_before, "the same links again");
    }
}

#[test]
fn hard_links_lead_into_the_repository() {
    run(&[
        (
            "--base h",
            Some(&[file("a", "1"), file("d/x", "2"), hard("d/y", "d/x"), file("e", "3"), file("f", "4")]),
            "
            /h/
            /h/a \"1\"
            /h/d/
            /h/d/x \"2\" (x=y)
            /h/d/y \"2\" (x=y)
            /h/e \"3\"
            /h/f \"4\"
            ",
        ),
        (
            "--base h --delete h/f",
            Some(&[
                hard("b", "a"),
                hard("d/z", "d/x"),
                hard("d/a", "a"),
                hard("d/b", "a"),
                hard("n/ew", "d/y"),
                file("e", "new"),
                hard("g", "e"),
            ]),
            "
            /h/
            /h/a \"1\" (a=b)
            /h/b \"1\" (a=b)
            /h/d/
            /h/d/a \"1\" (a=b)
            /h/d/b \"1\" (a=b)
            /h/d/x \"2\" (x=y=z)
            /h/d/y \"2\" (x=y=z)
            /h/d/z \"2\" (x=y=z)
            /h/e \"new\" (e=g)
            /h/g \"new\" (e=g)
            /h/n/
            /h/n/ew \"2\"
            ",
        ),
        // A name that is replaced leaves its group, also where the others get one more.
        (
            "--base h",
            Some(&[
                file("d/y", "other"),
                hard("d/w", "d/x"),
                file("b", "alone"),
                file("d", "").mode(0),
                dir("d"),
                hard("c", "d/x"),
            ]),
            "
            /h/
            /h/a \"1\"
            /h/b \"alone\"
            /h/c \"2\"
            /h/d/
            /h/d/a \"1\" (a=b)
            /h/d/b \"1\" (a=b)
            /h/d/x \"2\" (x=y=z)
            /h/d/y \"2\" (x=y=z)
            /h/d/z \"2\" (x=y=z)
            /h/e \"new\" (e=g)
            /h/g \"new\" (e=g)
            /h/n/
            /h/n/ew \"2\"
            ",
        ),
        (
            "--base h",
            Some(&[file("d/y", "other"), hard("d/w", "d/x"), hard("d/b", "g")]),
            "
            /h/
            /h/a \"1\"
            /h/b \"alone\"
            /h/c \"2\"
            /h/d/
            /h/d/a \"1\"
            /h/d/b \"new\"
            /h/d/w \"2\" (w=x=z)
            /h/d/x \"2\" (w=x=z)
            /h/d/y \"other\"
            /h/d/z \"2\" (w=x=z)
            /h/e \"new\" (e=g)
            /h/g \"new\" (e=g)
            /h/n/
            /h/n/ew \"2\"
            ",
        ),
    ]);
}
