package main

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/control"
	"golang.org/x/sys/unix"
)

// treeOptions are the words of ls --tree -o.
type treeOptions struct {
	device, blkdevname, active, open, rw, uuid bool
	compact, inverted, truncate                bool
	symbols                                    treeSymbols
}

// treeSymbols draw the branches: of a node with a next one, past it, and of
// the last.
type treeSymbols struct{ branch, along, last, single, first string }

func asciiTree() treeSymbols { return treeSymbols{"|-", "| ", "`-", "---", "-+-"} }
func utfTree() treeSymbols   { return treeSymbols{"├─", "│ ", "└─", "───", "─┬─"} }
func vt100Tree() treeSymbols {
	line := func(s string) string { return "\x1b(0\x0f" + s + "\x1b(B" }
	return treeSymbols{line("tq"), line("x") + " ", line("mq"), line("qqq"), line("qwq")}
}

// treeOptions reads the words; each may be shortened.
func (d *dm) treeOptions() (treeOptions, error) {
	t := treeOptions{device: true, truncate: true, symbols: asciiTree()}
	if d.utf8Locale() {
		t.symbols = utfTree()
	}
	if !d.o.on("options") {
		return t, nil
	}
	list := strings.Split(d.o.value["options"], ",")
	known := []struct {
		name string
		set  func()
	}{
		{"device", func() { t.device = true }}, {"blkdevname", func() { t.blkdevname = true }},
		{"nodevice", func() { t.device = false }}, {"status", func() {}}, {"table", func() {}},
		{"active", func() { t.active = true }}, {"open", func() { t.open = true }},
		{"uuid", func() { t.uuid = true }}, {"rw", func() { t.rw = true }},
		{"utf", func() { t.symbols = utfTree() }}, {"vt100", func() { t.symbols = vt100Tree() }},
		{"ascii", func() { t.symbols = asciiTree() }}, {"inverted", func() { t.inverted = true }},
		{"compact", func() { t.compact = true }}, {"notrunc", func() { t.truncate = false }},
	}
next:
	for i, word := range list {
		for _, k := range known {
			if strings.HasPrefix(k.name, word) {
				k.set()
				continue next
			}
		}
		return t, d.plain(exitUsage, "Tree options not recognised: %s.", strings.Join(list[i:], ","))
	}
	return t, nil
}

// utf8Locale says whether output is UTF-8, as setlocale(3) finds it.
func (d *dm) utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := d.env(name); v != "" {
			v = strings.ToUpper(v)
			return strings.HasSuffix(v, "UTF-8") || strings.HasSuffix(v, "UTF8")
		}
	}
	return false
}

// treeNode is a device of the tree: one of ours, or something below.
type treeNode struct {
	info         *control.Info
	major, minor int
	path         string // of a regular file
	down, up     []*treeNode
}

// deviceTree reads all devices with what they stand on. Children are in the
// order of deps, parents in the order of names.
func (d *dm) deviceTree() (nodes []*treeNode, err error) {
	list, err := d.list(control.ListOptions{Deps: true})
	if err != nil {
		return nil, err
	}
	infos := list.Devices
	byKey := map[string]*treeNode{}
	for _, i := range infos {
		n := &treeNode{info: &i, major: i.Major, minor: i.Minor}
		byKey[fmt.Sprintf("%d:%d", i.Major, i.Minor)] = n
		nodes = append(nodes, n)
	}
	for i, n := range nodes[:len(infos)] {
		for _, dep := range list.Deps[i] {
			key := fmt.Sprintf("%d:%d%s", dep.Major, dep.Minor, dep.Path)
			if dep.Major >= 0 {
				key = fmt.Sprintf("%d:%d", dep.Major, dep.Minor)
			}
			low := byKey[key]
			if low == nil {
				low = &treeNode{major: dep.Major, minor: dep.Minor, path: dep.Path}
				byKey[key] = low
				nodes = append(nodes, low)
			}
			n.down = append(n.down, low)
			low.up = append(low.up, n)
		}
	}
	return nodes, nil
}

// tree prints the tree of devices: those that nobody uses are its roots.
func (d *dm) tree() error {
	o, err := d.treeOptions()
	if err != nil {
		return err
	}
	nodes, err := d.deviceTree()
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return d.none()
	}
	p := treePrinter{d: d, o: o, width: 80}
	if ws, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 3 {
		p.width = int(ws.Col) - 3
	}
	var roots []*treeNode
	for _, n := range nodes {
		if o.inverted && len(n.down) == 0 || !o.inverted && len(n.up) == 0 {
			roots = append(roots, n)
		}
	}
	if o.inverted {
		roots = foreignFirst(roots)
	}
	p.children(roots, nil)
	return p.err
}

// foreignFirst puts what is not ours in front, as dmsetup meets it first when
// it goes upwards.
func foreignFirst(nodes []*treeNode) []*treeNode {
	var foreign, own []*treeNode
	for _, n := range nodes {
		if n.info == nil {
			foreign = append(foreign, n)
		} else {
			own = append(own, n)
		}
	}
	return append(foreign, own...)
}

// treePrinter prints a tree line by line.
type treePrinter struct {
	d     *dm
	o     treeOptions
	width int
	line  string // begun, in the compact form
	err   error
}

// level is where a branch stands: whether more follow at its depth, and how
// wide the node above was printed on the same line.
type level struct {
	more  bool
	width int
}

func (p *treePrinter) children(nodes []*treeNode, above []level) {
	for i, n := range nodes {
		p.node(n, append(above[:len(above):len(above)], level{more: i < len(nodes)-1}))
	}
}

func (p *treePrinter) next(n *treeNode) []*treeNode {
	if p.o.inverted {
		return n.up
	}
	return n.down
}

// node prints one node and what is below it.
func (p *treePrinter) node(n *treeNode, at []level) {
	if n.info == nil && !p.o.device && !p.o.blkdevname {
		return
	}
	compact := p.o.compact && !p.o.active && !p.o.open && !p.o.rw && !p.o.uuid
	depth := len(at) - 1
	here := &at[depth]
	text := p.text(n)
	switch {
	case compact && p.line != "":
		branch := p.o.symbols.single
		if here.more {
			branch = p.o.symbols.first
		}
		text = branch + text
	default:
		p.line = p.prefix(at)
	}
	p.line += text
	if compact {
		here.width = utf8.RuneCountInString(text)
	}
	below := p.next(n)
	if !compact || len(below) == 0 {
		p.end()
	}
	p.children(below, at)
}

// prefix draws the branches to a node that begins a line.
func (p *treePrinter) prefix(at []level) string {
	var b strings.Builder
	for i := range len(at) - 1 {
		b.WriteString(strings.Repeat(" ", at[i].width+1))
		switch {
		case i == len(at)-2 && at[i+1].more:
			b.WriteString(p.o.symbols.branch)
		case i == len(at)-2:
			b.WriteString(p.o.symbols.last)
		case at[i+1].more:
			b.WriteString(p.o.symbols.along)
		default:
			b.WriteString("  ")
		}
	}
	return b.String()
}

// end prints the line, cut to the width of the terminal.
func (p *treePrinter) end() {
	line := p.line
	p.line = ""
	if p.o.truncate && utf8.RuneCountInString(line) > p.width-1 {
		r := []rune(line)
		line = string(r[:p.width-1]) + "..."
	}
	if _, err := fmt.Fprintln(p.d.stdout, line); err != nil && p.err == nil {
		p.err = err
	}
}

// text is a node without its branches.
func (p *treePrinter) text(n *treeNode) string {
	var b strings.Builder
	blk, number := p.d.kernelName(n), fmt.Sprintf("%d:%d", n.major, n.minor)
	if n.major < 0 {
		number = n.path
	}
	if n.info != nil {
		b.WriteString(p.d.mangling.show(n.info.Name))
	}
	if p.o.blkdevname && blk != "" {
		b.WriteString(" <" + blk + ">")
	}
	if p.o.device {
		b.WriteString(" (" + number + ")")
	}
	if n.info != nil {
		b.WriteString(p.attributes(n.info))
	}
	return b.String()
}

// attributes are those asked for, in brackets.
func (p *treePrinter) attributes(i *control.Info) string {
	var words []string
	add := func(on, which bool, yes, no string) {
		if on && which {
			words = append(words, yes)
		} else if on {
			words = append(words, no)
		}
	}
	add(p.o.active, i.Suspended, "SUSPENDED", "ACTIVE")
	add(p.o.rw, i.ReadOnly, "RO", "RW")
	add(p.o.open, true, fmt.Sprint(i.OpenCount), "")
	add(p.o.uuid, true, p.d.mangling.show(i.UUID), "")
	if len(words) == 0 {
		return ""
	}
	return " [" + strings.Join(words, ", ") + "]"
}

// kernelName is the name of a block device in the kernel, or what it would be.
func (d *dm) kernelName(n *treeNode) string {
	if n.info != nil {
		return fmt.Sprintf("dm-%d", n.minor)
	}
	if n.major < 0 {
		return ""
	}
	to, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", n.major, n.minor))
	if err != nil {
		return ""
	}
	return to[strings.LastIndexByte(to, '/')+1:]
}
