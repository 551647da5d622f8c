//! Flags that are not known, and the known ones that are nearest to them.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Parser};

use crate::arguments::Arguments;

/// What a command line says. Where it is wrong the program ends as clap has it, and always with a known flag for one that is not: clap names only those that are very
/// near.
pub(crate) fn parse(arguments: Vec<OsString>) -> Arguments {
    let command = command_of(&arguments);
    Arguments::try_parse_from(arguments).unwrap_or_else(|error| with_nearest(error, &command).exit())
}

/// The long names of a command's flags, also those that its help page leaves out.
pub(crate) fn flags(command: &Command) -> Vec<&str> {
    let arguments = command.get_arguments();
    arguments
        .flat_map(|argument| {
            argument.get_long().into_iter().chain(argument.get_all_aliases().unwrap_or_default())
        })
        .collect()
}

/// The known name that the fewest letters tell from `name`, measured by the longer of both.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let hyphens = name.replace('_', "-");
    let likeness = |other: &str| strsim::normalized_damerau_levenshtein(&hyphens, other);
    known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// The command that a command line names, or the innermost that is known.
fn command_of(arguments: &[OsString]) -> Command {
    let mut command = Arguments::command();
    for name in arguments.iter().skip(1) {
        let Some(inner) = command.find_subcommand(name).cloned() else { break };
        command = inner;
    }
    command
}

fn with_nearest(mut error: clap::Error, command: &Command) -> clap::Error {
    if let Some(flag) = suggestion(&error, command) {
        // It would say how the flag is passed as a value.
        error.remove(ContextKind::Suggested);
        error.insert(ContextKind::SuggestedArg, ContextValue::String(flag));
    }
    error
}

/// The nearest flag to one that is not known, where clap names none.
fn suggestion(error: &clap::Error, command: &Command) -> Option<String> {
    let is_needed =
        error.kind() == ErrorKind::UnknownArgument && error.get(ContextKind::SuggestedArg).is_none();
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if is_needed => {
            Some(format!("--{}", nearest(flag.strip_prefix("--")?, &flags(command))?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_that_the_fewest_letters_tell_apart() {
        let known = ["rank", "lora-alpha", "learning-rate", "lr-power"];
        for (name, expected) in
            [("lora_alhpa", "lora-alpha"), ("learning_rate_decay", "learning-rate"), ("lr", "lr-power")]
        {
            assert_eq!(nearest(name, &known), Some(expected));
        }
        assert_eq!(nearest("rank", &[]), None);
    }
}
