--------------------------- MODULE DecisionChain ---------------------------
(***************************************************************************)
(* The decision chain of protocols/chain/chain.py: two slots, each one           *)
(* single-decree Paxos; the value decided at slot 1 names the voters of    *)
(* slot 2; slot 2 opens only with a quorum certificate for slot 1.         *)
(*                                                                         *)
(* Modelled: ballots, promises, adoption, votes, certificates,             *)
(* reconfiguration, loss of a disk (the store is gone for ever), rollback  *)
(* of a whole machine (both files), and the boot read that must repair it. *)
(* Messages may be lost, duplicated and reordered: msgs only grows.        *)
(* Not modelled: signatures, evidence, time, the fence (a rollback that    *)
(* the fence notices is the loss of a store), Reset and reads.             *)
(*                                                                         *)
(* The switches turn on one mistake each; every one must break an          *)
(* invariant, or the model is too weak to be believed.                     *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS
  Stores,        \* all stores there can ever be
  FirstConfig,   \* the voters of slot 1
  Configs,       \* the voter sets a decision may name
  Values,        \* payloads a proposer may choose
  MaxBallot,
  MaxSlot,       \* 1 or 2
  Losses,        \* how many stores may lose their disk
  Rollbacks,     \* how many stores may be taken back to empty, both files
  \* mistakes:
  NoAdoption, VolatilePromise, KeptStoreId, EarlyConfig, NoBootRead, ReadOnlyBootRead, UncountedBoot

Slots == 1..MaxSlot
Ballots == 1..MaxBallot
Symmetry == Permutations(Stores) \cup Permutations(Values)
None == [payload |-> "none", config |-> {}, prev |-> "none"]

\* A decision at slot 1 names the voters of slot 2; at slot 2 it carries the decision it follows.
FirstDecisions == [payload : Values, config : Configs, prev : {"genesis"}]
SecondDecisions(prev) == [payload : Values, config : {{}}, prev : {prev}]

VARIABLES
  msgs,      \* every message ever sent
  promised,  \* promised[store][slot]: the durable ballot, 0 for none
  accepted,  \* accepted[store][slot]: [ballot, decision]
  gone,      \* stores whose disk was lost
  reading,   \* stores that must finish their boot read before they speak
  boots,     \* boots[store]: how many boots that may have forgotten something it has had
  known,     \* known[store][other]: the boots of `other` that `store` was told of, durably
  losses, rollbacks

vars == <<msgs, promised, accepted, gone, reading, boots, known, losses, rollbacks>>

Nothing == [ballot |-> 0, decision |-> None]

Init ==
  /\ msgs = {}
  /\ promised = [s \in Stores |-> [i \in Slots |-> 0]]
  /\ accepted = [s \in Stores |-> [i \in Slots |-> Nothing]]
  /\ boots = [s \in Stores |-> 0]
  /\ known = [s \in Stores |-> [t \in Stores |-> 0]]
  /\ gone = {} /\ reading = {} /\ losses = 0 /\ rollbacks = 0

Majority(config) == Cardinality(config) \div 2 + 1
Quorums(config) == {q \in SUBSET config : Cardinality(q) >= Majority(config)}

Voted(store, slot, ballot, decision) ==
  [kind |-> "vote", slot |-> slot, ballot |-> ballot, decision |-> decision, store |-> store] \in msgs

Certified(slot, ballot, decision, config) ==
  Cardinality({s \in config : Voted(s, slot, ballot, decision)}) >= Majority(config)

Proposals(slot) == {m \in msgs : m.kind = "propose" /\ m.slot = slot}

Decided1 == {d \in {m.decision : m \in Proposals(1)} : \E b \in Ballots : Certified(1, b, d, FirstConfig)}

\* What a machine takes for the head of the chain when it works on slot 2.
Heads == IF EarlyConfig THEN {m.decision : m \in {n \in msgs : n.kind = "vote" /\ n.slot = 1}} ELSE Decided1

Config(slot, prev) == IF slot = 1 THEN FirstConfig ELSE prev.config

Decided2 == {d \in {m.decision : m \in Proposals(2)} :
              \E b \in Ballots : Certified(2, b, d, d.prev.config)}

Speaks(store) == store \notin gone /\ store \notin reading

\* 2. A promise. `prev` is the decision that slot 2 follows; slot 1 follows the genesis.
Promise(store, slot, ballot, prev) ==
  /\ Speaks(store) /\ store \in Config(slot, prev)
  /\ ballot > promised[store][slot]
  /\ promised' = [promised EXCEPT ![store][slot] = IF VolatilePromise THEN @ ELSE ballot]
  /\ msgs' = msgs \cup {[kind |-> "promise", slot |-> slot, ballot |-> ballot, store |-> store,
                         prev |-> prev, accepted |-> accepted[store][slot],
                         boot |-> boots[store]]}
  /\ UNCHANGED <<accepted, gone, reading, boots, known, losses, rollbacks>>

\* 3. A majority of promises: adopt the accepted decision of the highest ballot, else a fresh one.
Propose(slot, ballot, prev, quorum, decision) ==
  /\ ~ \E m \in Proposals(slot) : m.ballot = ballot
  /\ LET answers == {m \in msgs : m.kind = "promise" /\ m.slot = slot /\ m.ballot = ballot
                                  /\ m.prev = prev /\ m.store \in quorum}
         taken == {m.accepted : m \in {n \in answers : n.accepted.ballot > 0}}
     IN /\ {m.store : m \in answers} = quorum
        /\ \/ NoAdoption
           \/ taken = {}
           \/ \E a \in taken : /\ \A c \in taken : c.ballot <= a.ballot
                               /\ decision = a.decision
        /\ msgs' = msgs \cup {[kind |-> "propose", slot |-> slot, ballot |-> ballot, decision |-> decision,
                               promisers |-> {[store |-> m.store, boot |-> m.boot] : m \in answers}]}
  /\ UNCHANGED <<promised, accepted, gone, reading, boots, known, losses, rollbacks>>

\* 4. A vote.
Vote(store, m) ==
  /\ Speaks(store) /\ store \in Config(m.slot, m.decision.prev)
  /\ m.ballot >= promised[store][m.slot]
  /\ m.slot = 2 => m.decision.prev \in Heads
  \* A promise from before a boot that this store was told of may have been forgotten: it does not count.
  /\ \A p \in m.promisers : p.boot >= known[store][p.store]
  /\ promised' = [promised EXCEPT ![store][m.slot] = m.ballot]
  /\ accepted' = [accepted EXCEPT ![store][m.slot] = [ballot |-> m.ballot, decision |-> m.decision]]
  /\ msgs' = msgs \cup {[kind |-> "vote", slot |-> m.slot, ballot |-> m.ballot,
                         decision |-> m.decision, store |-> store]}
  /\ UNCHANGED <<gone, reading, boots, known, losses, rollbacks>>

Blank == [i \in Slots |-> Nothing]

\* The disk is lost. A lost disk is a different voter: this store never speaks again.
LoseDisk(store) ==
  /\ losses < Losses /\ store \notin gone
  /\ losses' = losses + 1
  /\ IF KeptStoreId
     THEN /\ promised' = [promised EXCEPT ![store] = [i \in Slots |-> 0]]
          /\ accepted' = [accepted EXCEPT ![store] = Blank]
          /\ UNCHANGED gone
     ELSE gone' = gone \cup {store} /\ UNCHANGED <<promised, accepted>>
  /\ UNCHANGED <<msgs, reading, boots, known, rollbacks>>

\* An old snapshot of the whole machine comes back (database and fence together), and the machine boots.
RollBack(store) ==
  /\ rollbacks < Rollbacks /\ store \notin gone
  /\ rollbacks' = rollbacks + 1
  /\ promised' = [promised EXCEPT ![store] = [i \in Slots |-> 0]]
  /\ accepted' = [accepted EXCEPT ![store] = Blank]
  /\ reading' = IF NoBootRead THEN reading ELSE reading \cup {store}
  /\ boots' = [boots EXCEPT ![store] = @ + 1]
  /\ known' = [known EXCEPT ![store] = [t \in Stores |-> IF t = store THEN boots[store] + 1 ELSE 0]]
  /\ UNCHANGED <<msgs, gone, losses>>

\* The boot read: n - majority + 1 other voters durably (1) promise a ballot above all that they have promised, so that
\* a vote which the reader forgot can no longer complete a certificate, and (2) note the reader's boot, so that no
\* proposal may lean on a promise which the reader forgot. The reader takes over the highest accepted. Done at once here.
\* ReadOnlyBootRead: the others tell what they promised and accepted, and change nothing. UncountedBoot: (1) without (2).
BootRead(store, others, ballot) ==
  LET slot == 1
      highest == CHOOSE a \in {accepted[o][slot] : o \in others} :
                   \A c \in {accepted[o][slot] : o \in others} : c.ballot <= a.ballot
      seen == {promised[o][slot] : o \in others}
      top == CHOOSE b \in seen : \A c \in seen : c <= b
  IN /\ store \in reading
     /\ others \subseteq (FirstConfig \ {store})
     /\ Cardinality(others) = Cardinality(FirstConfig) - Majority(FirstConfig) + 1
     /\ \A o \in others : Speaks(o)
     /\ reading' = reading \ {store}
     /\ accepted' = [accepted EXCEPT ![store][slot] = highest]
     /\ IF ReadOnlyBootRead
        THEN promised' = [promised EXCEPT ![store][slot] = top]
        ELSE /\ ballot > top
             /\ promised' = [s \in Stores |->
                  IF s \in others \cup {store} THEN [promised[s] EXCEPT ![slot] = ballot] ELSE promised[s]]
     /\ known' = IF ReadOnlyBootRead \/ UncountedBoot THEN known
                  ELSE [s \in Stores |-> IF s \in others THEN [known[s] EXCEPT ![store] = boots[store]] ELSE known[s]]
     /\ UNCHANGED <<msgs, gone, boots, losses, rollbacks>>

Genesis == [payload |-> "genesis", config |-> FirstConfig, prev |-> "none"]
Prevs(slot) == IF slot = 1 THEN {Genesis} ELSE Heads
Choices(slot, prev) == IF slot = 1 THEN FirstDecisions ELSE SecondDecisions(prev)

Next ==
  \/ \E slot \in Slots, b \in Ballots, store \in Stores : \E prev \in Prevs(slot) :
       Promise(store, slot, b, prev)
  \/ \E slot \in Slots, b \in Ballots : \E prev \in Prevs(slot) :
       \E q \in Quorums(Config(slot, prev)), d \in Choices(slot, prev) : Propose(slot, b, prev, q, d)
  \/ \E slot \in Slots : \E m \in Proposals(slot), store \in Stores : Vote(store, m)
  \/ \E store \in Stores : LoseDisk(store) \/ RollBack(store)
  \/ \E store \in Stores, others \in SUBSET FirstConfig, b \in Ballots : BootRead(store, others, b)

Spec == Init /\ [][Next]_vars

\* At most one decision with a valid certificate per slot.
UniqueDecision == Cardinality(Decided1) <= 1 /\ Cardinality(Decided2) <= 1

\* The voters of slot 2 are the ones that the decision at slot 1 names; nobody else decides there.
OneConfig == \A d \in Decided2 : d.prev \in Decided1

\* A ballot carries one decision.
BallotOnce == \A slot \in Slots : \A m, n \in Proposals(slot) : m.ballot = n.ballot => m = n
=============================================================================
