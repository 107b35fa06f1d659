package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/fault"
)

// arranged are arguments in the order that the flag library wants:
// global flags, command path, the command's flags, "--", arguments.
type arranged struct {
	path    []string     // names of the command
	command *cli.Command // nil: none was named
	args    []string     // all of it, for App.Run, without the program's name
}

// arrange finds the command that args mean and puts its flags before its
// arguments. Whether a flag takes a value depends on its name alone
// (a test holds the tree to that), so flags may stand anywhere.
func arrange(app *cli.App, args []string) (arranged, error) {
	var flags, words, literal []string
	help := false
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			literal = args[i+1:]
			i = len(args)
		case !strings.HasPrefix(a, "-"):
			words = append(words, a)
		case a == "-":
			return arranged{}, usage("an argument may not begin with '-': %q", a)
		default:
			name, _, has := strings.Cut(strings.TrimLeft(a, "-"), "=")
			if name == "help" || name == "h" {
				help = true
				continue
			}
			f := anywhere(app, name)
			if f == nil {
				return arranged{command: descend(app, words).command}, unknownFlag(app, words, a)
			}
			if !has && takesValue(f) {
				if i+1 == len(args) {
					return arranged{}, usage("flag %s needs a value", a)
				}
				i++
				a += "=" + args[i]
			}
			flags = append(flags, a)
		}
	}
	out := descend(app, words)
	if help {
		out.args = append(slices.Clone(out.path), "--help")
		return out, nil
	}
	rest := words[len(out.path):]
	if out.command == nil && len(rest) > 0 {
		return out, unknownCommand("", rest[0], app.Commands)
	}
	if out.command != nil && len(out.command.Subcommands) > 0 && len(rest) > 0 {
		return out, unknownCommand(strings.Join(out.path, " ")+" ", rest[0], out.command.Subcommands)
	}
	var global, local []string
	given := map[cli.Flag]string{}
	for _, a := range flags {
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		f, at := find(app.Flags, name), &global
		if f == nil && out.command != nil {
			f, at = find(out.command.Flags, name), &local
		}
		if f == nil {
			return out, unknownFlag(app, words, a)
		}
		if first, twice := given[f]; twice && !repeats(f) {
			return out, usage("flag --%s is given twice: %s and %s", f.Names()[0], first, a)
		}
		given[f] = a
		*at = append(*at, a)
	}
	out.args = slices.Concat(global, out.path, local)
	if rest = append(rest, literal...); len(rest) > 0 {
		out.args = append(append(out.args, "--"), rest...)
	}
	return out, nil
}

// repeats reports whether a flag may be given more than once.
func repeats(f cli.Flag) bool {
	_, many := f.(*cli.StringSliceFlag)
	return many
}

// descend follows words into the command tree as far as they name commands.
func descend(app *cli.App, words []string) arranged {
	var out arranged
	commands := app.Commands
	for _, w := range words {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(w) })
		if i < 0 {
			break
		}
		out.path, out.command = append(out.path, w), commands[i]
		commands = commands[i].Subcommands
	}
	return out
}

// anywhere finds a flag by name in the whole tree.
func anywhere(app *cli.App, name string) cli.Flag {
	if f := find(app.Flags, name); f != nil {
		return f
	}
	var found cli.Flag
	walk(app.Commands, nil, func(_ []string, c *cli.Command) {
		if f := find(c.Flags, name); f != nil && found == nil {
			found = f
		}
	})
	return found
}

func find(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}

// walk visits every command of a tree with its path.
func walk(commands []*cli.Command, path []string, visit func(path []string, c *cli.Command)) {
	for _, c := range commands {
		p := append(slices.Clone(path), c.Name)
		visit(p, c)
		walk(c.Subcommands, p, visit)
	}
}

func usage(format string, args ...any) *fault.Error {
	return &fault.Error{Code: fault.Usage, What: "read the arguments", Why: fmt.Sprintf(format, args...)}
}

func unknownFlag(app *cli.App, words []string, a string) error {
	at := descend(app, words)
	name, _, _ := strings.Cut(a, "=")
	known := flagNames(app.Flags)
	where := "afterimage"
	if at.command != nil {
		known = append(known, flagNames(at.command.Flags)...)
		where += " " + strings.Join(at.path, " ")
	}
	return usage("%s has no flag %s", where, name).Advise("It knows %s. See %s --help.", strings.Join(known, ", "), where)
}

func flagNames(flags []cli.Flag) []string {
	var names []string
	for _, f := range flags {
		names = append(names, "--"+f.Names()[0])
	}
	return names
}

func unknownCommand(prefix, word string, commands []*cli.Command) error {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	e := usage("there is no command %q", "afterimage "+prefix+word)
	return e.Advise("After \"%s\" come %s.", strings.TrimSpace("afterimage "+prefix), strings.Join(names, ", "))
}
