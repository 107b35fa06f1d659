package fault

import (
	"slices"
	"strings"
)

// Codes. They are append-only: a code that was released keeps its meaning.
const (
	Unexpected   Code = "AI-E0001"
	Usage        Code = "AI-E0002"
	Unconfirmed  Code = "AI-E0003"
	Interrupted  Code = "AI-E0004"
	ToolMissing  Code = "AI-E0005"
	FileExists   Code = "AI-E0006"
	Partly       Code = "AI-E0007"
	FileTrouble  Code = "AI-E0008"
	NoSuchCode   Code = "AI-E0009"
	ClaimsBroken Code = "AI-E0010"
	HostUnfit    Code = "AI-E0011"

	ConfigMissing   Code = "AI-E0101"
	ConfigSyntax    Code = "AI-E0102"
	ConfigKey       Code = "AI-E0103"
	ConfigValue     Code = "AI-E0104"
	ConfigAbsent    Code = "AI-E0105"
	ConfigDuplicate Code = "AI-E0106"
	ConfigReference Code = "AI-E0107"

	DaemonAbsent   Code = "AI-E0201"
	DaemonTwice    Code = "AI-E0202"
	ControlDenied  Code = "AI-E0203"
	ControlBroken  Code = "AI-E0204"
	GroupFailed    Code = "AI-E0205"
	NeedsDaemon    Code = "AI-E0206"
	ListenTrouble  Code = "AI-E0207"
	OperationBusy  Code = "AI-E0208"
	ControlVersion Code = "AI-E0209"

	GroupUnknown   Code = "AI-E0301"
	PointUnknown   Code = "AI-E0302"
	VolumeUnknown  Code = "AI-E0303"
	ViewUnknown    Code = "AI-E0304"
	AtSyntax       Code = "AI-E0305"
	GroupAmbiguous Code = "AI-E0306"
	NotPrimary     Code = "AI-E0307"
	MarkName       Code = "AI-E0308"
	JournalAbsent  Code = "AI-E0309"
	PinUnknown     Code = "AI-E0310"

	JournalDamage  Code = "AI-E0401"
	JournalLocked  Code = "AI-E0402"
	JournalFull    Code = "AI-E0403"
	EpochFenced    Code = "AI-E0404"
	HistoryLost    Code = "AI-E0405"
	JournalFormat  Code = "AI-E0406"
	RestoreDiffers Code = "AI-E0407"
	JournalStopped Code = "AI-E0408"

	HistoryThinned Code = "AI-E0409"

	JournalRolledBack Code = "AI-E0421"
	SegmentMissing    Code = "AI-E0422"
	JournalForeign    Code = "AI-E0423"
	DamageLeft        Code = "AI-E0424"
	RunLost           Code = "AI-E0425"
	SiteLogLost       Code = "AI-E0426"

	KeyMissing   Code = "AI-E0431"
	KeyWrong     Code = "AI-E0432"
	KeyDestroyed Code = "AI-E0433"
	KeySource    Code = "AI-E0434"

	HistoryLocked Code = "AI-E0435"

	PeerUnreachable Code = "AI-E0501"
	PeerPin         Code = "AI-E0502"
	PeerDiverged    Code = "AI-E0503"
	PeerUnrelated   Code = "AI-E0504"
	PeerUnknown     Code = "AI-E0505"
	PeerProtocol    Code = "AI-E0506"
	SiteKey         Code = "AI-E0507"
	TokenTrouble    Code = "AI-E0508"
	SeedTrouble     Code = "AI-E0509"
	SeedLate        Code = "AI-E0510"

	TapTrouble    Code = "AI-E0601"
	ImageTrouble  Code = "AI-E0602"
	VolumeResized Code = "AI-E0603"

	QuiesceTrouble Code = "AI-E0604"

	NotReplica      Code = "AI-E0701"
	PrimaryAlive    Code = "AI-E0702"
	MachineAbsent   Code = "AI-E0703"
	MachineTrouble  Code = "AI-E0704"
	PlanStale       Code = "AI-E0705"
	FailoverTrouble Code = "AI-E0706"
	PeerAhead       Code = "AI-E0707"
	NotFenced       Code = "AI-E0708"
	DrillLeft       Code = "AI-E0709"
	TailTrouble     Code = "AI-E0710"

	HandoverTrouble Code = "AI-E0721"
	RoleForbids     Code = "AI-E0722"
	HomeElsewhere   Code = "AI-E0723"

	RewindRefused    Code = "AI-E0731"
	RewindBehindFork Code = "AI-E0732"
	RewindElsewhere  Code = "AI-E0733"
	RewindUnfinished Code = "AI-E0734"

	BisectBounds  Code = "AI-E0741"
	BisectCheck   Code = "AI-E0742"
	BisectUnclear Code = "AI-E0743"

	RunbookSyntax  Code = "AI-E0801"
	RunbookKey     Code = "AI-E0802"
	RunbookStep    Code = "AI-E0803"
	RunbookValue   Code = "AI-E0804"
	RunbookMachine Code = "AI-E0805"
	RunbookGroup   Code = "AI-E0806"
	RunbookCycle   Code = "AI-E0807"
	RunbookProgram Code = "AI-E0808"
	RunbookMode    Code = "AI-E0809"
	RunUnknown     Code = "AI-E0810"
	RunOver        Code = "AI-E0811"
	RunHalted      Code = "AI-E0812"
	RunAsks        Code = "AI-E0813"
	RunDamaged     Code = "AI-E0814"

	EvidenceTampered   Code = "AI-E0901"
	EvidenceLedger     Code = "AI-E0902"
	EvidenceShortened  Code = "AI-E0903"
	EvidenceUnanchored Code = "AI-E0904"
	EvidenceStranger   Code = "AI-E0905"
	ReportUnknown      Code = "AI-E0906"
)

// Entry explains one code.
type Entry struct {
	Code  Code   `json:"code"`
	Exit  int    `json:"exit"`
	Title string `json:"title"` // a few words
	Cause string `json:"cause"` // how one gets here
	Do    string `json:"do"`    // what to do
}

// Lookup finds a code's entry. It accepts AI-E0301, E0301, e0301 and 301.
func Lookup(code Code) (Entry, bool) {
	s := strings.ToUpper(strings.TrimSpace(string(code)))
	s = strings.TrimPrefix(s, "AI-")
	s = strings.TrimPrefix(s, "E")
	for len(s) < 4 {
		s = "0" + s
	}
	i := slices.IndexFunc(table, func(e Entry) bool { return strings.TrimPrefix(string(e.Code), "AI-E") == s })
	if i < 0 {
		return Entry{}, false
	}
	return table[i], true
}

// Table is every code, in order.
func Table() []Entry { return slices.Clone(table) }
