package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// addExamples gives an example to each verb that brings none of its own: those
// of dmsetup, whose help is dmsetup's, and cobra's.
func addExamples(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if text, ok := examples[strings.TrimPrefix(c.CommandPath(), root.Name()+" ")]; ok && c.Example == "" {
			c.Example = "  " + strings.ReplaceAll(text, "\n", "\n  ")
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// examples are shown by --help and in the manual. It is never changed.
var examples = map[string]string{
	"dmfuse":   "dmfuse snapshot create disk.img monday\ndmfuse mount monday /mnt",
	"serve":    "dmfuse serve --mount /dev/mapper\ndmfuse serve --run-dir /srv/dm --allow-other",
	"shutdown": "dmfuse shutdown",
	"upgrade":  "dmfuse upgrade --binary /usr/local/bin/dmfuse",
	"version":  "dmfuse version -J",
	"events":   "dmfuse events --follow -J",
	"dmsetup":  "dmfuse dmsetup create z --table '0 2048 zero'",
	"help":     "dmfuse help snapshot create",

	"create":         "dmfuse create lin --table '0 2048 linear /srv/disk.img 0'\ndmfuse create lin < table",
	"remove":         "dmfuse remove lin\ndmfuse remove --retry lin",
	"remove_all":     "dmfuse remove_all",
	"suspend":        "dmfuse suspend lin",
	"resume":         "dmfuse resume lin",
	"load":           "dmfuse load lin --table '0 4096 linear /srv/disk.img 0' && dmfuse resume lin",
	"reload":         "dmfuse reload lin --table '0 4096 linear /srv/disk.img 0' && dmfuse resume lin",
	"clear":          "dmfuse clear lin",
	"wipe_table":     "dmfuse wipe_table lin",
	"rename":         "dmfuse rename lin line\ndmfuse rename line --setuuid U-1",
	"message":        "dmfuse message dusty 0 addbadblock 60",
	"ls":             "dmfuse ls --tree\ndmfuse ls --target snapshot --exec file",
	"info":           "dmfuse info lin\ndmfuse info -c -o name,open,segments",
	"deps":           "dmfuse deps -o devname lin",
	"status":         "dmfuse status --check\ndmfuse status monday",
	"table":          "dmfuse table lin\ndmfuse table --concise",
	"wait":           "dmfuse wait monday 3",
	"mknodes":        "dmfuse mknodes",
	"mangle":         "dmfuse mangle lin",
	"target-version": "dmfuse target-version snapshot",
	"targets":        "dmfuse targets",
	"splitname":      "dmfuse splitname vg-lv LVM",
	"stats":          "dmfuse stats create --alldevices\ndmfuse stats report",

	"measure":     "dmfuse measure lin",
	"setgeometry": "dmfuse setgeometry lin 128 64 32 0",

	"attach":         "dmfuse attach disk --partscan",
	"detach":         "dmfuse detach disk\ndmfuse detach /dev/loop3",
	"umount":         "dmfuse umount /mnt",
	"mirror ls":      "dmfuse mirror ls -J",
	"snapshot ls":    "dmfuse snapshot ls",
	"snapshot rm":    "dmfuse snapshot rm monday\ndmfuse snapshot rm monday --keep-cow",
	"snapshot usage": "dmfuse snapshot usage monday",

	"completion":            "dmfuse completion bash",
	"completion bash":       "dmfuse completion bash > /etc/bash_completion.d/dmfuse",
	"completion zsh":        "dmfuse completion zsh > \"${fpath[1]}/_dmfuse\"",
	"completion fish":       "dmfuse completion fish > ~/.config/fish/completions/dmfuse.fish",
	"completion powershell": "dmfuse completion powershell > dmfuse.ps1",
}
