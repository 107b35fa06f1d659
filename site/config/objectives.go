package config

// Objectives are what a group must hold to. Status compares them with what was measured.
type Objectives struct {
	RPO     Duration `yaml:"rpo,omitempty"`      // the same as the group's rpo:
	RPOWarn Duration `yaml:"rpo_warn,omitempty"` // from when on status warns
	RTO     Duration `yaml:"rto,omitempty"`      // of drills and failovers, to the machine running and healthy
}

// Drill is how often a group's failover must be rehearsed at this site, and when it is
// done by itself while the group is a replica here.
type Drill struct {
	Every Duration `yaml:"every"`
	At    Clock    `yaml:"at,omitempty"` // the quiet time of the day, in the group's tz:
}

func (g *Group) completeObjectives() {
	if g.RPO == 0 && g.Objectives != nil {
		g.RPO = g.Objectives.RPO
	}
}

func (s *shape) objectives(path string, g Group) {
	if o := g.Objectives; o != nil && o.RPO > 0 && g.RPO != o.RPO {
		s.wrong(path+".objectives.rpo", "the group has an rpo: and another one under objectives:", "keep one of them")
	}
	if o := g.Objectives; o != nil && o.RPOWarn > 0 && o.RPOWarn >= g.RPO {
		s.wrong(path+".objectives.rpo_warn", "it warns no earlier than the objective is missed", "less than rpo:, such as: objectives: {rpo: 15s, rpo_warn: 10s}")
	}
	if g.Drill != nil && g.Drill.Every <= 0 {
		s.absent(path+".drill.every", "how often, such as: drill: {every: 30d}")
	}
	if g.Machine == nil && (g.Drill != nil || g.Objectives != nil && g.Objectives.RTO > 0) {
		s.wrong(path+".name", "the group names no machine that a drill could start", "add machine:, or take drill: and rto: out")
	}
}
