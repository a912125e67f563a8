//! The command line itself: help, version, completions, man pages, pipes.

use crate::support::{herd, root, text};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

fn stdout(args: &[&str]) -> String {
    let out = herd().args(args).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// Every command with its help: paths such as `config schema`, found in the help texts themselves.
fn commands() -> &'static [(Vec<String>, String)] {
    static ALL: OnceLock<Vec<(Vec<String>, String)>> = OnceLock::new();
    fn below(path: Vec<String>, out: &mut Vec<(Vec<String>, String)>) {
        let mut args = vec!["help"];
        args.extend(path.iter().map(String::as_str));
        let help = stdout(&args);
        let names = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        // A wrapped description is indented further than a name.
        let names = names.lines().take_while(|l| l.starts_with("  ")).filter(|l| !l.starts_with("   "));
        for name in names.map(|l| l.split_whitespace().next().unwrap()).filter(|n| *n != "help") {
            below([path.clone(), vec![name.to_string()]].concat(), out);
        }
        if !path.is_empty() {
            out.push((path, help));
        }
    }
    ALL.get_or_init(|| {
        let mut out = Vec::new();
        below(Vec::new(), &mut out);
        out
    })
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let all = commands();
    assert!(all.len() >= 6, "{all:?}");
    for (path, help) in all {
        assert!(help.contains("Usage: herd"), "{path:?}: {help}");
        assert!(help.contains("Examples:\n  "), "{path:?} has no examples");
    }
    let (_, help) = all.iter().find(|(path, _)| path == &["config", "check"]).unwrap();
    assert_eq!(&stdout(&["config", "check", "--help"]), help);
}

#[test]
fn version_says_what_it_was_built_with() {
    assert_eq!(stdout(&["-V"]).trim(), concat!("herd ", env!("CARGO_PKG_VERSION")));
    let long = stdout(&["--version"]);
    assert!(long.starts_with("herd ") && long.contains("\nlibtorch 2.") && long.contains("\nMPI "), "{long}");
}

#[test]
fn exit_codes_are_listed_from_the_one_table() {
    let said = stdout(&["help", "exit-codes"]);
    for (exit, meaning, action) in herd::error::Exit::TABLE {
        assert!(said.contains(&format!("{:>3}  {meaning}\n       {action}", exit.code())), "{exit:?}: {said}");
    }
}

/// `herd help events` writes the tables between the marks in docs/events.md.
#[test]
fn the_documented_events_are_the_events() {
    let tables = stdout(&["help", "events"]);
    let docs = std::fs::read_to_string(root().join("docs/events.md")).unwrap();
    let (_, rest) = docs.split_once("<!-- events -->\n").expect("the first mark");
    let (held, _) = rest.split_once("<!-- end of events -->").expect("the second mark");
    assert!(held.trim() == tables.trim(), "docs/events.md is stale: paste `herd help events`");
    assert!(tables.contains("| `fault` |"), "{tables}");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        for word in ["config", "completions", "markdown"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("herd.bash");
    std::fs::write(&path, stdout(&["completions", "bash"])).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success());
    // Not only well-formed: bash offers the subcommands.
    let ask = "source \"$0\"; COMP_WORDS=(herd con); COMP_CWORD=1; _herd herd con herd; echo \"${COMPREPLY[@]}\"";
    let offered = Command::new("bash").arg("-c").arg(ask).arg(&path).output().unwrap();
    assert_eq!(text(&offered).trim(), "config");
}

#[test]
fn man_pages_render_and_list_the_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let out = herd().arg("man").arg(dir.path()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    for (path, _) in commands() {
        let page = dir.path().join(format!("herd-{}.1", path.join("-")));
        assert!(page.exists(), "{}", page.display());
    }
    let page = std::fs::read_to_string(dir.path().join("herd.1")).unwrap();
    assert_eq!(page, stdout(&["man"]));
    for section in [".TH HERD 1", ".SH NAME", ".SH EXAMPLES", ".SH \"EXIT STATUS\""] {
        assert!(page.contains(section), "{section}: {page}");
    }
    if let Ok(man) =
        Command::new("man").arg("-l").arg(dir.path().join("herd-config-check.1")).env("MANWIDTH", "100").output()
    {
        let shown = text(&man);
        assert!(man.status.success(), "{shown}");
        for words in ["--ranks", "herd config check configs/llama3_demo.yaml", "the configuration is wrong"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    for args in [&["config", "schema"][..], &["completions", "bash"], &["man"], &["help", "config", "check"]] {
        let mut child = herd().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_said() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let out = herd().args(["config", "schema"]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(21), "{}", text(&out));
    assert!(text(&out).contains("no space"), "{}", text(&out));
}

#[test]
fn logs_go_to_a_file_per_rank() {
    use herd::cli::logging;
    // One process can start logging once: this is the only test that does.
    let dir = tempfile::tempdir().unwrap();
    let file = logging::RankLog { run_dir: dir.path(), node: "n1", rank: 7 };
    logging::init(false, Some(file)).unwrap();
    tracing::info!(step = 3, "hello");
    tracing::debug!("too fine");
    let log = std::fs::read_to_string(dir.path().join("logs/n1/rank-00007.log")).unwrap();
    assert!(log.contains("hello") && log.contains("step=3") && !log.contains("too fine"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}
